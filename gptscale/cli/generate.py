"""gptscale generate: text from a checkpoint."""

from typing import Annotated

import typer

from gptscale.cli.arguments import Checkpoint


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("generate")(run_generate)


def run_generate(
    checkpoint: Checkpoint,
    prompt: Annotated[list[str], typer.Option(help="Text to continue; may be given several times.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write after the prompt.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the k likeliest tokens.")] = 50,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest tokens that reach p.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed writes the same text.")] = 0,
) -> None:
    """Continue prompts with temperature, top-k and top-p sampling."""
    from gptscale.checkpoint.model import load_model
    from gptscale.data.tokenizer import load_tokenizer
    from gptscale.generation.decode import generate_text
    from gptscale.runtime.device import default_device

    model, cfg = load_model(checkpoint, default_device())
    texts = generate_text(
        model,
        load_tokenizer(cfg.data.tokenizer),
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    print("\n---\n".join(texts))

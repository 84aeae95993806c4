"""gptscale evaluate: loss, perplexity and bits per byte of a checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gptscale.cli.arguments import Checkpoint

if TYPE_CHECKING:
    from gptscale.evaluation.loss import Evaluation


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("evaluate")(run_evaluate)


def run_evaluate(
    checkpoint: Checkpoint,
    split: Annotated[str, typer.Option(help="val or train.")] = "val",
    sequences: Annotated[int | None, typer.Option(min=1, help="Windows, spread evenly; all without it.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Another corpus than the run's own.")] = None,
) -> None:
    """Loss in nats per token, perplexity and bits per byte over fixed windows."""
    from gptscale.errors import ConfigError

    if split not in ("val", "train"):
        raise ConfigError(f"--split={split} is neither val nor train")
    found = evaluate(checkpoint, split="val" if split == "val" else "train", sequences=sequences, data_dir=data_dir)
    print(
        f"{split}: loss {found.loss:.4f} nats/token, perplexity {found.perplexity:.2f}, "
        f"{found.bits_per_byte:.4f} bits/byte, over {found.tokens:,} tokens"
    )


def evaluate(
    checkpoint: str | Path,
    *,
    split: Literal["val", "train"] = "val",
    sequences: int | None = None,
    data_dir: str | Path | None = None,
) -> "Evaluation":
    """Evaluate a checkpoint, or a run's newest, over windows of its corpus or of the one in data_dir.

    sequences is the number of windows, spread evenly; null takes all. Computes in float32.
    """
    import torch

    from gptscale.checkpoint.model import load_model
    from gptscale.data.corpus import check_split, open_corpus
    from gptscale.data.loader import eval_batches, evenly_spaced_windows
    from gptscale.data.tokenizer import load_tokenizer
    from gptscale.errors import ConfigError
    from gptscale.evaluation.loss import evaluate_loss
    from gptscale.runtime.device import default_device

    device = default_device()
    model, cfg = load_model(checkpoint, device)
    if data_dir is None and cfg.data.mixture:
        dirs = ", ".join(str(corpus.dir) for corpus in cfg.data.mixture)
        raise ConfigError(f"{checkpoint} was trained on a mixture; choose one of its corpora with --data-dir: {dirs}")
    folder = Path(data_dir) if data_dir else cfg.data.folder
    corpus = open_corpus(folder)
    check_split(corpus, cfg, split, folder)
    stream = corpus.val if split == "val" else corpus.train
    starts = evenly_spaced_windows(stream, cfg.model.context_length, sequences)
    batches = eval_batches(stream, starts, cfg.model.context_length, cfg.train.micro_batch_sequences or 1)
    with torch.no_grad():
        return evaluate_loss(model, batches, load_tokenizer(cfg.data.tokenizer).token_bytes, device)

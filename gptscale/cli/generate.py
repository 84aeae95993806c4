"""gptscale generate: text from a checkpoint."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptscale.cli.arguments import Checkpoint
from gptscale.errors import ConfigError

if TYPE_CHECKING:
    from gptscale.data.tokenizer import Tokenizer
    from gptscale.generation.text import Piece
    from gptscale.model.gpt import GPTModel

    Stream = Callable[[Sequence[str]], Iterator[Piece]]


OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
OF_BEAMS = ("length_penalty",)


def run_generate(
    context: typer.Context,
    checkpoint: Checkpoint,
    prompt: Annotated[list[str] | None, typer.Option(help="Text to continue; may be given several times.")] = None,
    interactive: Annotated[bool, typer.Option("--interactive", help="Continue each line that is typed.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write after the prompt.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from the k likeliest tokens; 0 draws from all.")] = 50,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest tokens that reach p.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Draw from tokens at least p times as likely as the best.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(min=0.01, help="Above 1 makes tokens that are there already less likely.")
    ] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed writes the same text.")] = 0,
    beams: Annotated[int | None, typer.Option(min=1, help="Search the likeliest text with so many beams.")] = None,
    length_penalty: Annotated[float, typer.Option(min=-10, max=10, help="Above 0 favours longer beams.")] = 1.0,
    n_best: Annotated[int, typer.Option(min=1, help="Beams to show.")] = 1,
    log_probabilities: Annotated[
        bool, typer.Option("--log-probabilities", help="Show each token with its log-probability.")
    ] = False,
) -> None:
    """Continue prompts, by sampling or by beam search, as the tokens come."""
    from gptscale.generation.sampling import Sampling
    from gptscale.generation.text import search_text, stream_text
    from gptscale.runtime.telling import explaining

    prompts, stops = prompt or [], stop or []
    _check_ways(prompts, interactive, beams, n_best, log_probabilities, stops)
    _check_given(context, "sampling" if beams is None else "beams")
    with explaining("let nothing else use the device, or set ACCELERATE_USE_CPU=true"):
        model, tokenizer = _load(checkpoint)
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "stop": stops}
        if beams is not None:
            options |= {"beams": beams, "n_best": n_best, "length_penalty": length_penalty}
            for each in prompts:
                for text, score in search_text(model, tokenizer, each, **options):
                    print(f"{text}\n--- score {score:.4f}")
            return
        sampling = Sampling(temperature, top_k or None, top_p, min_p, repetition_penalty)
        options |= {"sampling": sampling, "seed": seed, "log_probabilities": log_probabilities}
        stream = partial(stream_text, model, tokenizer, **options)
        if interactive:
            _converse(stream, tokenizer)
        elif len(prompts) == 1:
            _write(stream, tokenizer, prompts[0])
        else:
            _write_all(stream, tokenizer, prompts)


def _check_ways(
    prompts: list[str], interactive: bool, beams: int | None, n_best: int, log_probabilities: bool, stops: list[str]
) -> None:
    if bool(prompts) == interactive:
        raise ConfigError("generate needs --prompt TEXT, once or several times, or else --interactive")
    if beams is not None and (interactive or log_probabilities):
        raise ConfigError("--beams searches whole texts; leave out --interactive and --log-probabilities")
    if n_best > (beams or 1):
        raise ConfigError(f"--n-best={n_best} shows what --beams finds; give --beams {n_best} or more")
    if "" in stops:
        raise ConfigError("--stop is empty; give at least one character, or leave it out")


def _check_given(context: typer.Context, way: str) -> None:
    """Refuse options that the other way of writing would take, and this one would not even look at."""
    unread = OF_SAMPLING if way == "beams" else OF_BEAMS
    said = [name for name in unread if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"]
    if said:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in said)
        why = "--beams searches the likeliest text and draws nothing" if way == "beams" else "only --beams reads that"
        raise ConfigError(f"{why}; leave out {options}")


def _load(checkpoint: Path) -> "tuple[GPTModel, Tokenizer]":
    from gptscale.checkpoint.model import load_model
    from gptscale.data.tokenizer import load_tokenizer
    from gptscale.generation.layout import by_columns
    from gptscale.runtime.device import local_device

    model, cfg = load_model(checkpoint, local_device())
    return by_columns(model), load_tokenizer(cfg.data.tokenizer)


def _write(stream: "Stream", tokenizer: "Tokenizer", prompt: str) -> None:
    """Print a continuation as it comes, and the log-probabilities if there are any."""
    print(prompt, end="", flush=True)
    pieces = []
    for piece in stream([prompt]):
        print(piece.text, end="", flush=True)
        pieces.append(piece)
    print()
    _print_probabilities(pieces, tokenizer)


def _write_all(stream: "Stream", tokenizer: "Tokenizer", prompts: list[str]) -> None:
    """Print continuations that were written side by side, one after the other."""
    pieces = list(stream(prompts))
    for number, prompt in enumerate(prompts):
        mine = [piece for piece in pieces if piece.row == number]
        print("\n---\n" if number else "", prompt, *(piece.text for piece in mine), sep="")
        _print_probabilities(mine, tokenizer)


def _converse(stream: "Stream", tokenizer: "Tokenizer") -> None:
    """Continue each line of the input, until its end; Ctrl-C ends a text, not the program."""
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        with suppress(KeyboardInterrupt):
            _write(stream, tokenizer, line)


def _print_probabilities(pieces: "list[Piece]", tokenizer: "Tokenizer") -> None:
    for piece in pieces:
        if piece.token.log_probability is not None:
            print(f"{piece.token.log_probability:10.4f}  {tokenizer.decode([piece.token.id])!r}")

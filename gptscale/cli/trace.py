"""gptscale trace: the documents that a step read."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gptscale.data.trace import Stretch, TracedSample

SHORT_CHARACTERS = 72


def run_trace(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    step: Annotated[int, typer.Option(min=1, help="The step, as log.jsonl counts them: the first is 1.")],
    full: Annotated[bool, typer.Option("--full", help="Whole texts instead of their beginnings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each sample.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Where the run's corpus lies now.")] = None,
) -> None:
    """For every sample of a step: its place in the order, its tokens, and the documents they came from."""
    from gptscale.training.trace import trace_step

    for sample in trace_step(run, step, data_dir):
        shown = sample if full else _shortened(sample)
        print(json.dumps(asdict(shown)) if as_json else "\n".join(_lines(shown)))


def _shortened(sample: "TracedSample") -> "TracedSample":
    return replace(sample, pieces=[replace(piece, text=_short(piece.text)) for piece in sample.pieces])


def _short(text: str) -> str:
    return text if len(text) <= SHORT_CHARACTERS else text[:SHORT_CHARACTERS] + "..."


def _lines(sample: "TracedSample") -> Iterator[str]:
    yield (
        f"position {sample.position}: epoch {sample.epoch}, sample {sample.sample}, "
        f"tokens {sample.start} to {sample.stop - 1}"
    )
    yield from (f"  {_where(piece)}\n    {json.dumps(piece.text, ensure_ascii=False)}" for piece in sample.pieces)


def _where(piece: "Stretch") -> str:
    return (
        f"{Path(piece.corpus) / piece.shard} at token {piece.offset}: document {piece.document} (row {piece.row} of "
        f"{piece.rows_of}) from its token {piece.skipped} on, {piece.tokens} tokens"
    )

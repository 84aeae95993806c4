"""gptscale evaluate: loss, perplexity and bits per byte of a checkpoint, and its answers to cloze questions."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gptscale.cli.arguments import Checkpoint
from gptscale.errors import ConfigError
from gptscale.runtime.launch import launched_rank

if TYPE_CHECKING:
    from gptscale.data.manifest import Split
    from gptscale.evaluation.cloze import ClozeScore
    from gptscale.evaluation.loss import Evaluation


def run_evaluate(
    checkpoint: Checkpoint,
    split: Annotated[str | None, typer.Option(help="val or train; val without it.")] = None,
    sequences: Annotated[int | None, typer.Option(min=1, help="Windows, spread evenly; all without it.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Another corpus than the run's own.")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Let windows overlap: tokens between their starts.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="A name in eval.sets, or all; can be given several times.")
    ] = None,
    cloze: Annotated[
        Path | None, typer.Option(help="A JSONL file of questions in the HellaSwag style; alone, all there is.")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="The run's checkpoint of lowest validation loss.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Loss in nats per token, perplexity and bits per byte over fixed or sliding windows."""
    from gptscale.cli.subject import Subject
    from gptscale.evaluation.cloze import read_questions
    from gptscale.runtime import ranks
    from gptscale.runtime.telling import explaining
    from gptscale.tracking.jsonl import plain

    _check_options(split or "val", sequences, stride)
    if sets and (split or data_dir):
        raise ConfigError(f"--set names what is evaluated; leave out {'--split' if split else '--data-dir'}")
    results: dict[str, Any] = {}
    with explaining("let nothing else use the device, or set ACCELERATE_USE_CPU=true"):
        ranks.join()
        questions = ranks.agree(lambda: read_questions(cloze)) if cloze is not None else []
        subject = Subject(checkpoint, best=best, sequences=sequences, stride=stride)
        if cloze is None or split or sets or sequences or data_dir or stride:  # a cloze file alone needs no corpus
            part: Split = "train" if split == "train" else "val"
            for name, found in subject.evaluations(part, data_dir, sets or ()):
                results[name] = _as_dict(found)
                _say("" if as_json else _line(name, found))
        if cloze is not None:
            score = subject.cloze(questions)
            results["cloze"] = {"file": str(cloze), **asdict(score), "acc_norm_stderr": score.stderr}
            _say("" if as_json else _cloze_line(cloze, score))
    about = {"checkpoint": str(subject.folder), "step": subject.step, "stride": stride}
    _say(json.dumps(plain({**about, "results": results}), allow_nan=False) if as_json else "")


def evaluate(
    checkpoint: str | Path,
    *,
    split: Literal["val", "train"] = "val",
    sequences: int | None = None,
    data_dir: str | Path | None = None,
    stride: int | None = None,
    best: bool = False,
) -> "Evaluation":
    """Evaluate a checkpoint, or a run's newest or best, over windows of its corpus or of the one in data_dir.

    sequences is the number of windows, spread evenly; null takes all. stride is the distance between their starts,
    and each counts only what the one before did not reach; null lets them lie side by side. Computes in float32.
    Under a launcher all ranks call this together, and share the windows. A mixture's corpora count by weight.
    """
    from gptscale.cli.subject import Subject

    _check_options(split, sequences, stride)
    subject = Subject(Path(checkpoint), best=best, sequences=sequences, stride=stride)
    _, found = next(subject.evaluations(split, Path(data_dir) if data_dir else None))
    return found


def _check_options(split: str, sequences: int | None, stride: int | None) -> None:
    if split not in ("val", "train"):
        raise ConfigError(f"--split={split} is neither val nor train")
    for name, value in (("sequences", sequences), ("stride", stride)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name}={value} is no number of them; give 1 or more, or leave it out")


def _say(line: str) -> None:
    """Print a line once."""
    if line and launched_rank() == 0:
        print(line)


def _line(name: str, found: "Evaluation") -> str:
    return (
        f"{name}: loss {found.loss:.4f} nats/token, perplexity {found.perplexity:.2f}, "
        f"{found.bits_per_byte:.4f} bits/byte, over {found.tokens:,} tokens"
    )


def _cloze_line(path: Path, score: "ClozeScore") -> str:
    return (
        f"cloze {path}: acc {score.acc:.4f}, acc_norm {score.acc_norm:.4f} +- {score.stderr:.4f}, "
        f"acc_bytes {score.acc_bytes:.4f}, over {score.questions:,} questions"
    )


def _as_dict(found: "Evaluation") -> dict[str, Any]:
    return {
        **found.figures(),
        "tokens": found.tokens,
        "bytes": found.bytes,
        "loss_by_position": found.by_position,
    }

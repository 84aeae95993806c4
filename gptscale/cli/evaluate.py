"""gptscale evaluate: loss, perplexity and bits per byte of a checkpoint, and its answers to cloze questions."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gptscale.cli.arguments import Checkpoint
from gptscale.cli.own_tokenizer import own_tokenizer

if TYPE_CHECKING:
    import torch

    from gptscale.checkpoint.layout import CheckpointManifest
    from gptscale.config.schema import Config
    from gptscale.data.corpus import Corpus
    from gptscale.data.manifest import Split
    from gptscale.data.stream import TokenStream
    from gptscale.evaluation.cloze import ClozeScore, Question
    from gptscale.evaluation.loss import Evaluation
    from gptscale.model.gpt import GPTModel


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("evaluate")(run_evaluate)


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
    from gptscale.errors import ConfigError
    from gptscale.evaluation.cloze import read_questions
    from gptscale.runtime import ranks

    _check_options(split or "val", sequences, stride)
    if sets and (split or data_dir):
        raise ConfigError(f"--set names what is evaluated; leave out {'--split' if split else '--data-dir'}")
    ranks.join()
    results: dict[str, Any] = {}
    with ranks.explaining("let nothing else use the device, or set ACCELERATE_USE_CPU=true"):
        questions = ranks.agree(lambda: read_questions(cloze)) if cloze is not None else []
        subject = Subject(checkpoint, best=best)
        if cloze is None or split or sets or sequences or data_dir or stride:  # a cloze file alone needs no corpus
            part: Split = "train" if split == "train" else "val"
            for name, found in subject.evaluations(Windows(sequences, stride), part, data_dir, sets or ()):
                results[name] = _as_dict(found)
                subject.say("" if as_json else _line(name, found))
        if cloze is not None:
            score = subject.cloze(questions)
            shares = {**asdict(score), "acc_norm_stderr": score.stderr}
            results["cloze"] = {"file": str(cloze), **{key: _number(value) for key, value in shares.items()}}
            subject.say("" if as_json else _cloze_line(cloze, score))
    about = {"checkpoint": str(subject.folder), "step": subject.step, "stride": stride}
    subject.say(json.dumps({**about, "results": results}, allow_nan=False) if as_json else "")


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
    _check_options(split, sequences, stride)
    subject = Subject(Path(checkpoint), best=best)
    _, found = next(subject.evaluations(Windows(sequences, stride), split, Path(data_dir) if data_dir else None))
    return found


def _check_options(split: str, sequences: int | None, stride: int | None) -> None:
    from gptscale.errors import ConfigError

    if split not in ("val", "train"):
        raise ConfigError(f"--split={split} is neither val nor train")
    for name, value in (("sequences", sequences), ("stride", stride)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name}={value} is no number of them; give 1 or more, or leave it out")


@dataclass(frozen=True)
class Windows:
    """Which windows of a text count."""

    sequences: int | None
    """How many, spread evenly; null takes all."""
    stride: int | None
    """Tokens between the starts of two; null lets them lie side by side."""


class Subject:
    """A trained model to be evaluated, on this rank of perhaps several."""

    def __init__(self, checkpoint: Path, *, best: bool = False) -> None:
        from gptscale.checkpoint.imported import IMPORTED
        from gptscale.runtime import ranks
        from gptscale.runtime.device import local_device

        ranks.join()
        self.device: torch.device = local_device()
        self.folder, manifest, self.model, self.cfg = _load_together(checkpoint, best, self.device)
        self.step, self._imported = manifest.step, manifest.engine == IMPORTED
        self._tokenizer = ranks.agree(lambda: own_tokenizer(self.cfg))

    def evaluations(
        self, windows: Windows, split: "Split", data_dir: Path | None = None, names: "Sequence[str]" = ()
    ) -> "Iterator[tuple[str, Evaluation]]":
        """Over a split of the run's own corpus or of another one; or, by their names, over validation sets of the run.

        A mixture is followed by each of its corpora. All ranks call this together.
        """
        from gptscale.errors import ConfigError
        from gptscale.runtime import ranks

        known = ("val", *self.cfg.eval.sets)
        if unknown := [name for name in names if name not in (*known, "all")]:
            raise ConfigError(f"--set={unknown[0]} is not in eval.sets; known are {', '.join(known)} and all")
        for name in dict.fromkeys(known if "all" in names else names or (split,)):
            if self.cfg.data.mixture and name not in self.cfg.eval.sets and not data_dir:
                yield from self._over_mixture("train" if name == "train" else "val", windows)
            else:
                yield name, self._over(ranks.agree(partial(self._open, name, data_dir, windows)), windows)

    def _open(self, name: str, data_dir: Path | None, windows: Windows) -> "TokenStream":
        """A validation set of the run by its name, or a split of its own corpus or of another one."""
        from gptscale.data.corpus import open_corpus

        is_set = name in self.cfg.eval.sets
        folder = self.cfg.eval.sets.get(name) or data_dir or self._own_folder()
        corpus = open_corpus(folder, f"eval.sets.{name}" if is_set else "--data-dir" if data_dir else "data.dir")
        split: Split = "train" if name == "train" else "val"
        return self._stream(corpus, corpus.evaluated_split if is_set else split, folder, windows)

    def _over_mixture(self, split: "Split", windows: Windows) -> "Iterator[tuple[str, Evaluation]]":
        """The loss by weight and that of each corpus, as training has them."""
        from gptscale.data.corpora import Corpora, open_corpora
        from gptscale.evaluation.loss import mixed
        from gptscale.runtime import ranks

        def open_streams() -> "tuple[Corpora, list[TokenStream]]":
            corpora = open_corpora(self.cfg)
            parts = zip(corpora.parts, corpora.folders, strict=True)
            return corpora, [self._stream(part, split, folder, windows) for part, folder in parts]

        corpora, streams = ranks.agree(open_streams)
        counts = corpora.window_counts(windows.sequences)
        each = [
            self._over(stream, replace(windows, sequences=count)) for stream, count in zip(streams, counts, strict=True)
        ]
        yield split, mixed(each, corpora.mixture.shares)
        for name, found in zip(corpora.names, each, strict=True):
            yield f"{split}/{name}", found

    def _stream(self, corpus: "Corpus", split: "Split", folder: Path, windows: Windows) -> "TokenStream":
        """A split that the model can be evaluated on; raises what check_split raises."""
        from gptscale.data.corpus import check_split

        shortest = self.cfg.model.context_length if windows.stride is None else 1  # sliding ones may be cut short
        model = self.cfg.model.model_copy(update={"context_length": shortest})
        check_split(corpus, self.cfg.model_copy(update={"model": model}), split, folder)
        return corpus.of(split)

    def _own_folder(self) -> Path:
        from gptscale.data.manifest import FILE_NAME
        from gptscale.errors import ConfigError

        if self._imported and not (self.cfg.data.folder / FILE_NAME).is_file():
            raise ConfigError(f"{self.folder} is imported and has no corpus of its own; choose one with --data-dir")
        return self.cfg.data.folder

    def _over(self, stream: "TokenStream", windows: Windows) -> "Evaluation":
        """Loss over windows of a stream. All ranks call this together."""
        import torch

        from gptscale.data.loader import eval_batches, evenly_spaced_windows
        from gptscale.data.sliding import sliding_batches, sliding_windows
        from gptscale.errors import ConfigError
        from gptscale.evaluation.loss import evaluate_loss
        from gptscale.runtime import ranks
        from gptscale.runtime.launch import launched_rank, launched_world

        length, rows = self.cfg.model.context_length, self.cfg.train.micro_batch_sequences or 1
        sequences, stride = windows.sequences, windows.stride
        if stride is None:
            starts = evenly_spaced_windows(stream, length, sequences)
            batches = eval_batches(stream, starts, length, rows, launched_rank(), launched_world())
        elif stride > length:
            raise ConfigError(f"--stride={stride} would pass over tokens: the model sees {length}; take that or less")
        else:
            starts = sliding_windows(stream, length, stride, sequences)
            batches = sliding_batches(stream, starts, length, stride, rows, launched_rank(), launched_world())
        with torch.no_grad():
            return evaluate_loss(
                lambda inputs, targets: self.model(inputs, targets, by_token=True),
                batches,
                self._tokenizer.token_bytes,
                self.device,
                total=lambda sums: torch.stack(ranks.gather(sums.cpu())).sum(0),
            )

    def cloze(self, questions: "Sequence[Question]") -> "ClozeScore":
        """How many answers are right. All ranks call this together."""
        import torch

        from gptscale.evaluation.cloze import log_likelihoods, score
        from gptscale.runtime import ranks
        from gptscale.runtime.launch import launched_rank, launched_world

        world = launched_world()
        with torch.no_grad():
            mine = log_likelihoods(
                lambda inputs, targets: self.model(inputs, targets, by_token=True),
                questions[launched_rank() :: world],
                self._tokenizer,
                self.cfg.model.context_length,
                self.device,
            )
        shares = ranks.gather(mine)
        return score(questions, [shares[i % world][i // world] for i in range(len(questions))])

    @staticmethod
    def say(line: str) -> None:
        """Print a line once."""
        from gptscale.runtime.launch import launched_rank

        if line and launched_rank() == 0:
            print(line)


def _load_together(
    path: Path, best: bool, device: "torch.device"
) -> "tuple[Path, CheckpointManifest, GPTModel, Config]":
    """The checkpoint that the first rank finds, on all ranks: another may see a newer one. All ranks call this."""
    from gptscale.checkpoint.model import find_checkpoint, is_replaced, load_verified
    from gptscale.errors import GptscaleError
    from gptscale.runtime import ranks
    from gptscale.runtime.launch import launched_rank

    found = ranks.agree(lambda: find_checkpoint(path, best=best) if launched_rank() == 0 else None)
    folder, manifest = ranks.gather(found)[0]  # type: ignore[misc]
    try:
        return folder, manifest, *ranks.agree(lambda: load_verified(folder, manifest, device))
    except GptscaleError:
        if not ranks.gather(is_replaced(folder, path))[0]:
            raise
    return _load_together(path, best, device)


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
    """As JSON can say it: null for what is no number."""
    values = {
        "loss": found.loss,
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "tokens": found.tokens,
        "bytes": found.bytes,
    }
    return {
        **{key: _number(value) for key, value in values.items()},
        "loss_by_position": [_number(loss) for loss in found.by_position],
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""gptscale evaluate: loss, perplexity and bits per byte of a checkpoint, and its answers to cloze questions."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gptscale.cli.arguments import Checkpoint
from gptscale.cli.own_tokenizer import own_tokenizer

if TYPE_CHECKING:
    import torch

    from gptscale.config.schema import Config
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

    if split not in (None, "val", "train"):
        raise ConfigError(f"--split={split} is neither val nor train")
    if sets and (split or data_dir):
        raise ConfigError(f"--set names what is evaluated; leave out {'--split' if split else '--data-dir'}")
    questions = read_questions(cloze) if cloze is not None else []
    subject = Subject(checkpoint, best=best)
    results: dict[str, Any] = {}
    if cloze is None or split or sets or sequences or data_dir or stride:  # a cloze file alone needs no corpus
        for name, stream in subject.streams("train" if split == "train" else "val", data_dir, sets or ()):
            found = subject.over(stream, sequences, stride)
            results[name] = _as_dict(found)
            subject.say("" if as_json else _line(name, found))
    if cloze is not None:
        score = subject.cloze(questions)
        results["cloze"] = {"file": str(cloze), **asdict(score), "acc_norm_stderr": score.stderr}
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
    Under a launcher all ranks call this together, and share the windows.
    """
    subject = Subject(Path(checkpoint), best=best)
    ((_, stream),) = subject.streams(split, Path(data_dir) if data_dir else None)
    return subject.over(stream, sequences, stride)


class Subject:
    """A trained model to be evaluated, on this rank of perhaps several."""

    def __init__(self, checkpoint: Path, *, best: bool = False) -> None:
        from gptscale.checkpoint.imported import IMPORTED
        from gptscale.checkpoint.model import find_checkpoint, load_verified
        from gptscale.runtime import ranks
        from gptscale.runtime.device import local_device

        ranks.join()
        self.device: torch.device = local_device()
        self.folder, manifest = find_checkpoint(checkpoint, best=best)
        self.step, self._imported = manifest.step, manifest.engine == IMPORTED
        loaded: tuple[GPTModel, Config] = load_verified(self.folder, manifest, self.device)
        self.model, self.cfg = loaded
        self._tokenizer = own_tokenizer(self.cfg)

    def streams(
        self, split: "Split", data_dir: Path | None = None, names: "Sequence[str]" = ()
    ) -> "Iterator[tuple[str, TokenStream]]":
        """A split of the run's own corpus or of another one; or, by their names, validation sets of the run."""
        from gptscale.data.corpus import check_split, open_corpus
        from gptscale.errors import ConfigError

        known = ("val", *self.cfg.eval.sets)
        if unknown := [name for name in names if name not in (*known, "all")]:
            raise ConfigError(f"--set={unknown[0]} is not in eval.sets; known are {', '.join(known)} and all")
        for name in dict.fromkeys(known if "all" in names else names or (split,)):
            folder = self.cfg.eval.sets.get(name) or data_dir or self._own_folder()
            is_set = name in self.cfg.eval.sets
            corpus = open_corpus(folder, f"eval.sets.{name}" if is_set else "--data-dir" if data_dir else "data.dir")
            part = corpus.evaluated_split if is_set else ("train" if name == "train" else "val")
            check_split(corpus, self.cfg, part, folder)
            yield name, corpus.train if part == "train" else corpus.val

    def _own_folder(self) -> Path:
        from gptscale.data.manifest import FILE_NAME
        from gptscale.errors import ConfigError

        if self.cfg.data.mixture:
            dirs = ", ".join(str(corpus.dir) for corpus in self.cfg.data.mixture)
            raise ConfigError(
                f"{self.folder} was trained on a mixture; choose one of its corpora with --data-dir: {dirs}"
            )
        if self._imported and not (self.cfg.data.folder / FILE_NAME).is_file():
            raise ConfigError(f"{self.folder} is imported and has no corpus of its own; choose one with --data-dir")
        return self.cfg.data.folder

    def over(self, stream: "TokenStream", sequences: int | None, stride: int | None) -> "Evaluation":
        """Loss over windows of a stream. All ranks call this together."""
        import torch

        from gptscale.data.loader import eval_batches, evenly_spaced_windows
        from gptscale.data.sliding import sliding_batches, sliding_windows
        from gptscale.errors import ConfigError
        from gptscale.evaluation.loss import evaluate_loss
        from gptscale.runtime import ranks
        from gptscale.runtime.launch import launched_rank, launched_world

        length, rows = self.cfg.model.context_length, self.cfg.train.micro_batch_sequences or 1
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
        **{key: value if math.isfinite(value) else None for key, value in values.items()},
        "loss_by_position": [loss if math.isfinite(loss) else None for loss in found.by_position],
    }

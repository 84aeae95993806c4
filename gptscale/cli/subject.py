"""A trained model to be evaluated: what `gptscale evaluate` does once its options are read."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from gptscale.checkpoint.imported import IMPORTED
from gptscale.checkpoint.layout import CheckpointManifest
from gptscale.checkpoint.model import find_checkpoint, is_gone, load_verified
from gptscale.cli.own_tokenizer import own_tokenizer
from gptscale.config.schema import Config
from gptscale.data.corpora import Corpora, open_corpora
from gptscale.data.corpus import Corpus, check_split, open_corpus
from gptscale.data.loader import eval_batches, evenly_spaced_windows
from gptscale.data.manifest import FILE_NAME, Split
from gptscale.data.sliding import sliding_batches, sliding_windows
from gptscale.data.stream import TokenStream
from gptscale.errors import ConfigError, GptscaleError
from gptscale.evaluation.cloze import ClozeScore, Question, log_likelihoods, score
from gptscale.evaluation.loss import Evaluation, evaluate_loss, mixed
from gptscale.model.gpt import GPTModel
from gptscale.runtime import ranks
from gptscale.runtime.device import local_device
from gptscale.runtime.launch import launched_rank, launched_world


class Subject:
    """A trained model to be evaluated, on this rank of perhaps several."""

    def __init__(
        self, checkpoint: Path, *, best: bool = False, sequences: int | None = None, stride: int | None = None
    ) -> None:
        """Sequences is how many windows of a text count, spread evenly, and stride the tokens between the starts of
        two; null takes all, side by side."""
        ranks.join()
        self.device: torch.device = local_device()
        self.folder, manifest, self.model, self.cfg = _load_together(checkpoint, best, self.device)
        self.step, self._imported = manifest.step, manifest.engine == IMPORTED
        self._sequences, self._stride = sequences, stride
        self._tokenizer = ranks.agree(lambda: own_tokenizer(self.cfg))

    def evaluations(
        self, split: Split, data_dir: Path | None = None, names: Sequence[str] = ()
    ) -> Iterator[tuple[str, Evaluation]]:
        """Over a split of the run's own corpus or of another one; or, by their names, over validation sets of the run.

        A mixture is followed by each of its corpora. All ranks call this together.
        """
        known = ("val", *self.cfg.eval.sets)
        if unknown := [name for name in names if name not in (*known, "all")]:
            raise ConfigError(f"--set={unknown[0]} is not in eval.sets; known are {', '.join(known)} and all")
        for name in dict.fromkeys(known if "all" in names else names or (split,)):
            if self.cfg.data.mixture and name not in self.cfg.eval.sets and not data_dir:
                yield from self._over_mixture("train" if name == "train" else "val")
            else:
                yield name, self._over(ranks.agree(partial(self._open, name, data_dir)), self._sequences)

    def _open(self, name: str, data_dir: Path | None) -> TokenStream:
        """A validation set of the run by its name, or a split of its own corpus or of another one."""
        is_set = name in self.cfg.eval.sets
        folder = self.cfg.eval.sets.get(name) or data_dir or self._own_folder()
        corpus = open_corpus(folder, f"eval.sets.{name}" if is_set else "--data-dir" if data_dir else "data.dir")
        split: Split = "train" if name == "train" else "val"
        return self._stream(corpus, corpus.evaluated_split if is_set else split, folder)

    def _over_mixture(self, split: Split) -> Iterator[tuple[str, Evaluation]]:
        """The loss by weight and that of each corpus, as training has them."""

        def open_streams() -> tuple[Corpora, list[TokenStream]]:
            corpora = open_corpora(self.cfg)
            parts = zip(corpora.parts, corpora.folders, strict=True)
            return corpora, [self._stream(part, split, folder) for part, folder in parts]

        corpora, streams = ranks.agree(open_streams)
        counts = corpora.window_counts(self._sequences)
        each = [self._over(stream, count) for stream, count in zip(streams, counts, strict=True)]
        yield split, mixed(each, corpora.mixture.shares)
        for name, found in zip(corpora.names, each, strict=True):
            yield f"{split}/{name}", found

    def _stream(self, corpus: Corpus, split: Split, folder: Path) -> TokenStream:
        """A split that the model can be evaluated on; raises what check_split raises."""
        shortest = self.cfg.model.context_length if self._stride is None else 1  # sliding ones may be cut short
        check_split(corpus, self.cfg.with_changes(model={"context_length": shortest}), split, folder)
        return corpus.of(split)

    def _own_folder(self) -> Path:
        if self._imported and not (self.cfg.data.folder / FILE_NAME).is_file():
            raise ConfigError(f"{self.folder} is imported and has no corpus of its own; choose one with --data-dir")
        return self.cfg.data.folder

    def _over(self, stream: TokenStream, sequences: int | None) -> Evaluation:
        """Loss over windows of a stream. All ranks call this together."""
        length, rows = self.cfg.model.context_length, self.cfg.train.micro_batch_sequences or 1
        stride = self._stride
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

    def cloze(self, questions: Sequence[Question]) -> ClozeScore:
        """How many answers are right. All ranks call this together."""
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


def _load_together(path: Path, best: bool, device: torch.device) -> tuple[Path, CheckpointManifest, GPTModel, Config]:
    """The checkpoint that the first rank finds, on all ranks: another may see a newer one. All ranks call this."""
    found = ranks.agree(lambda: find_checkpoint(path, best=best) if launched_rank() == 0 else None)
    folder, manifest = ranks.gather(found)[0]  # type: ignore[misc]
    try:
        return folder, manifest, *ranks.agree(lambda: load_verified(folder, manifest, device))
    except GptscaleError:
        if not ranks.gather(is_gone(folder))[0]:
            raise
    return _load_together(path, best, device)

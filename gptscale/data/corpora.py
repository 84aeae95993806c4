"""What a run trains on: one corpus, or several mixed by weight, as one stream of tokens and one sampler."""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from gptscale.config.schema import Config
from gptscale.data.corpus import Corpus, check_corpus, check_split, open_corpus
from gptscale.data.manifest import Split, hash_json
from gptscale.data.mixture import Mixture, mixture_of
from gptscale.data.sampler import MixedSampler, Sampler, count_samples
from gptscale.data.stream import TokenStream


@dataclass(frozen=True)
class Corpora:
    """Open corpora with their shares of the samples."""

    names: tuple[str, ...]
    folders: tuple[Path, ...]
    parts: tuple[Corpus, ...]
    mixture: Mixture

    @cached_property
    def train(self) -> TokenStream:
        """The training tokens of all corpora, one after another."""
        return self._joined("train")

    @cached_property
    def val(self) -> TokenStream:
        """The validation tokens of all corpora, one after another."""
        return self._joined("val")

    @property
    def fingerprint(self) -> str:
        """That of the one corpus, or of all with their shares."""
        if len(self.parts) == 1:
            return self.parts[0].manifest.fingerprint
        shares = zip(self.mixture.shares, self.parts, strict=True)
        return hash_json({"mixture": [[share, part.manifest.fingerprint] for share, part in shares]})

    def sampler(self, cfg: Config) -> MixedSampler:
        """The sampler of a run with this config."""

        def of_one(part: Corpus) -> Sampler:
            samples = count_samples(len(part.train), cfg.model.context_length, cfg.stride)
            return Sampler(samples, cfg.stride, cfg.run.seed, cfg.data.shuffle_block_samples)

        firsts = tuple(accumulate((len(part.train) for part in self.parts[:-1]), initial=0))
        return MixedSampler(self.names, self.mixture, tuple(map(of_one, self.parts)), firsts)

    def window_counts(self, count: int | None) -> list[int | None]:
        """How many of count evaluation windows are each corpus', at least one; null for null, which takes all."""
        if count is None:
            return [None] * len(self.parts)
        return [max(1, its) for its in self.mixture.counts(count)]

    def _joined(self, split: Split) -> TokenStream:
        return TokenStream([shard for part in self.parts for shard in part.of(split).shards])


def open_corpora(cfg: Config) -> Corpora:
    """Open the corpus of data.dir, or those of data.mixture. Raises DataError for what is missing or damaged."""
    mixed = cfg.data.mixture
    if not mixed:
        return Corpora(("",), (cfg.data.folder,), (open_corpus(cfg.data.folder),), Mixture((1,)))
    folders = tuple(corpus.dir for corpus in mixed)
    parts = tuple(open_corpus(folder, f"data.mixture.{number}.dir") for number, folder in enumerate(folders))
    return Corpora(tuple(c.label for c in mixed), folders, parts, mixture_of([c.weight for c in mixed]))


def check_corpora(corpora: Corpora, cfg: Config) -> Corpora:
    """The corpora, if a config can train on them: each alone has windows to train and to evaluate on."""
    if not cfg.data.mixture:
        check_corpus(corpora.parts[0], cfg)
        return corpora
    for folder, part in zip(corpora.folders, corpora.parts, strict=True):
        check_split(part, cfg, "train", folder)
        check_split(part, cfg, "val", folder)
    return corpora

"""A prepared corpus, opened and checked for training."""

from dataclasses import dataclass
from pathlib import Path

from gptscale.config.schema import Config
from gptscale.data.files import hash_file
from gptscale.data.loader import count_samples
from gptscale.data.manifest import FILE_NAME, Manifest, ShardEntry, Split, load_manifest
from gptscale.data.shard import Tokens, open_shard
from gptscale.data.stream import TokenStream
from gptscale.errors import DataError

HASHED_BYTES = 2**30
"""Corpora up to this size are read and hashed whenever they are opened; `verify` does it for larger ones."""


@dataclass(frozen=True)
class Corpus:
    """A corpus' manifest and its two token streams."""

    manifest: Manifest
    train: TokenStream
    val: TokenStream

    @property
    def tokenizer(self) -> str:
        """The tokenizer's name, as `load_tokenizer` takes it."""
        return str(self.manifest.settings.tokenizer["name"])


def open_corpus(folder: Path) -> Corpus:
    """Open the shards of data.dir; checks their headers and lengths, and a small corpus' hashes.

    Raises DataError for what is missing or damaged.
    """
    manifest = load_manifest(folder)
    tokens = {shard.file: _open_entry(folder, shard) for shard in manifest.shards}
    if sum(array.nbytes for array in tokens.values()) <= HASHED_BYTES:
        verify_hashes(folder, manifest)

    def stream(split: Split) -> TokenStream:
        return TokenStream([tokens[shard.file] for shard in manifest.of(split)])

    return Corpus(manifest, stream("train"), stream("val"))


def verify_hashes(folder: Path, manifest: Manifest) -> None:
    """Read every shard and compare its hash with the manifest's."""
    for shard in manifest.shards:
        found = hash_file(folder / shard.file)
        if found != shard.sha256:
            raise DataError(
                f"shard {folder / shard.file} is damaged: its SHA-256 is {found[:12]}..., not the "
                f"manifest's {shard.sha256[:12]}...; run prepare again, which makes that shard again"
            )


def check_corpus(corpus: Corpus, cfg: Config) -> None:
    """Check that a config can train on a corpus: tokenizer, vocabulary, one step, one validation window."""
    _check_tokenizer(corpus, cfg)
    _check_train(len(corpus.train), cfg)
    _check_val(len(corpus.val), cfg)


def _open_entry(folder: Path, shard: ShardEntry) -> Tokens:
    tokens = open_shard(folder / shard.file)
    if len(tokens) != shard.tokens:
        raise DataError(
            f"shard {folder / shard.file} holds {len(tokens):,} tokens, but {FILE_NAME} says "
            f"{shard.tokens:,}; run prepare again, which makes that shard again"
        )
    return tokens


def _check_tokenizer(corpus: Corpus, cfg: Config) -> None:
    if corpus.tokenizer != cfg.data.tokenizer:
        raise DataError(
            f"data.dir={cfg.data.dir} was made with tokenizer {corpus.tokenizer}, but data.tokenizer="
            f"{cfg.data.tokenizer}; set data.tokenizer={corpus.tokenizer} or choose another data.dir"
        )
    n_vocab = int(corpus.manifest.settings.tokenizer["n_vocab"])
    if n_vocab > cfg.model.vocab_size:
        raise DataError(
            f"tokenizer {corpus.tokenizer} has {n_vocab} tokens, but model.vocab_size="
            f"{cfg.model.vocab_size}; set model.vocab_size={n_vocab} or more"
        )


def _check_train(tokens: int, cfg: Config) -> None:
    context, step = cfg.model.context_length, cfg.sequences_per_step
    samples = count_samples(tokens, context, cfg.stride)
    if samples < step:
        needed = (step - 1) * cfg.stride + context + 1
        raise DataError(
            f"training split holds {tokens:,} tokens, which make {samples:,} samples, and one step needs "
            f"{step:,} ({needed:,} tokens); lower train.tokens_per_step={cfg.train.tokens_per_step}, "
            f"model.context_length={context} or data.stride, or prepare more text"
        )


def _check_val(tokens: int, cfg: Config) -> None:
    needed = cfg.model.context_length + 1
    if tokens < needed:
        raise DataError(
            f"validation split holds {tokens:,} tokens, one window needs {needed:,}; raise "
            f"data.validation_fraction={cfg.data.validation_fraction}, use data.split=tail, "
            f"or lower model.context_length={cfg.model.context_length}"
        )

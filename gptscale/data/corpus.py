"""A prepared corpus, opened and checked for training."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gptscale.config.schema import Config
from gptscale.data.foreign import map_tokens
from gptscale.data.manifest import FILE_NAME, Manifest, ShardEntry, Split, load_manifest
from gptscale.data.sampler import count_samples
from gptscale.data.shard import Tokens, open_shard
from gptscale.data.stream import TokenStream
from gptscale.data.tokenizer import known_ranks
from gptscale.data.verify import verify_corpus
from gptscale.disk import allow_open_files
from gptscale.errors import DataError

HASHED_BYTES = 2**30
"""Corpora up to this size are read and hashed whenever they are opened; `verify_corpus` does it for larger ones."""


MOST_MAPS, MAPS = Path("/proc/sys/vm/max_map_count"), Path("/proc/self/maps")
"""How many pieces of memory Linux lets a process map, and those of this one, one a line."""

OTHER_MAPS = 4096
"""How many more it may map after a corpus: libraries, threads, memory of the devices."""


@dataclass(frozen=True)
class Corpus:
    """A corpus' manifest and its two token streams."""

    manifest: Manifest
    train: TokenStream
    val: TokenStream

    def of(self, split: Split) -> TokenStream:
        """The stream of a split."""
        return self.train if split == "train" else self.val

    @property
    def tokenizer(self) -> str:
        """The tokenizer's name, as `load_tokenizer` takes it."""
        return str(self.manifest.settings.tokenizer["name"])

    @property
    def evaluated_split(self) -> Split:
        """What an evaluation on this corpus reads: val, or train where it was prepared without validation."""
        return "val" if len(self.val) else "train"


def open_corpus(folder: Path, setting: str = "data.dir") -> Corpus:
    """Open a corpus' shards; checks their headers and lengths, and a small corpus' hashes.

    Raises DataError for what is missing or damaged; setting is where the folder was named.
    """
    manifest = load_manifest(folder, setting)
    _allow_open_files(folder, len(manifest.shards))
    tokens = {shard.file: open_entry(folder, shard, manifest.settings.dtype) for shard in manifest.shards}
    if sum(array.nbytes for array in tokens.values()) <= HASHED_BYTES:
        verify_corpus(folder)

    def stream(split: Split) -> TokenStream:
        return TokenStream([tokens[shard.file] for shard in manifest.of(split)])

    return Corpus(manifest, stream("train"), stream("val"))


def check_corpus(corpus: Corpus, cfg: Config) -> None:
    """Check that a config can train on a corpus: tokenizer, vocabulary, one step, one validation window."""
    if mismatch := _tokenizer_mismatch(corpus, cfg):
        rename = f"set data.tokenizer={corpus.tokenizer} or " if corpus.tokenizer != cfg.data.tokenizer else ""
        raise DataError(f"data.dir={cfg.data.dir} {mismatch}; {rename}choose another data.dir")
    if excess := _vocabulary_excess(corpus, cfg):
        raise DataError(f"{excess}; set model.vocab_size={_n_vocab(corpus)} or more")
    if cfg.data.source is not None and (difference := _other_settings(corpus, cfg)):
        raise DataError(
            f"data.dir={cfg.data.dir} was prepared with {difference}; set that again, or prepare another data.dir"
        )
    _check_train(len(corpus.train), cfg)
    _check_val(corpus, cfg)


def check_split(corpus: Corpus, cfg: Config, split: Split, folder: Path) -> None:
    """Check that a trained model of cfg can be evaluated on a split of the corpus that was opened from folder.

    Of cfg only the tokenizer, the vocabulary and the context length count; data.dir may be another folder.
    """
    if mismatch := _tokenizer_mismatch(corpus, cfg):
        raise DataError(f"{folder} {mismatch}; choose a corpus of the model's own tokenizer")
    if excess := _vocabulary_excess(corpus, cfg):
        raise DataError(f"{folder} does not fit the model: {excess}; choose a corpus of the model's own tokenizer")
    stream, needed = corpus.of(split), cfg.model.context_length + 1
    if len(stream) < needed:
        raise DataError(
            f"{folder}: its {split} split holds {len(stream):,} tokens, and one window of "
            f"model.context_length={cfg.model.context_length} needs {needed:,}; choose another split or corpus"
        )


def open_entry(folder: Path, shard: ShardEntry, dtype: str) -> Tokens:
    """Map the tokens of one shard of a corpus, or of an adopted file. Raises DataError for a wrong length."""
    if shard.offset is not None:
        return map_tokens(Path(shard.file), dtype, shard.offset, shard.tokens)
    tokens = open_shard(folder / shard.file)
    if len(tokens) != shard.tokens:
        raise DataError(
            f"shard {folder / shard.file} holds {len(tokens):,} tokens, but {FILE_NAME} says "
            f"{shard.tokens:,}; run prepare again, which makes that shard again"
        )
    return tokens


def _allow_open_files(folder: Path, shards: int) -> None:
    """Let this process map so many more files; each counts as open, and the kernel counts maps too."""
    if (most := allow_open_files(shards)) is not None:
        raise DataError(
            f"{folder} has {shards:,} shards, and this process may have no more than {most:,} files open; raise the "
            "limit (ulimit -Hn), or prepare the corpus with a larger data.documents_per_shard"
        )
    with suppress(OSError, ValueError):  # only Linux has such a limit
        most = int(MOST_MAPS.read_text())
    if most is not None and (needed := shards + MAPS.read_bytes().count(b"\n") + OTHER_MAPS) > most:
        raise DataError(
            f"{folder} has {shards:,} shards, and this machine lets a process map no more than {most:,} pieces of "
            f"memory; raise that on all machines (sysctl -w vm.max_map_count={needed * 2}), or prepare the corpus with "
            "a larger data.documents_per_shard"
        )


def _tokenizer_mismatch(corpus: Corpus, cfg: Config) -> str | None:
    """How the corpus' tokenizer is not the config's; ranks are compared where they are known without a download."""
    name = cfg.data.tokenizer
    if corpus.tokenizer != name:
        return f"was made with tokenizer {corpus.tokenizer}, but data.tokenizer={name}"
    here, there = known_ranks(name), str(corpus.manifest.settings.tokenizer.get("ranks_sha256"))
    if here is not None and here != there:
        return f"was made with other ranks of tokenizer {name}: {there[:12]}..., not {here[:12]}..."
    return None


def _other_settings(corpus: Corpus, cfg: Config) -> str | None:
    """What the config says of the split that is not so; what would go into the record and be wrong there."""
    made, data = corpus.manifest.settings, cfg.data
    if made.split == "adopted":
        return None
    said = {name: (getattr(made, name), getattr(data, name)) for name in ("split", "validation_fraction", "split_seed")}
    said["end_of_text"] = (made.end_of_text is not None, data.end_of_text)
    different = [f"data.{name}={there}, not {here}" for name, (there, here) in said.items() if there != here]
    return ", ".join(different) or None


def _vocabulary_excess(corpus: Corpus, cfg: Config) -> str | None:
    if _n_vocab(corpus) <= cfg.model.vocab_size:
        return None
    return f"tokenizer {corpus.tokenizer} has {_n_vocab(corpus)} tokens, but model.vocab_size={cfg.model.vocab_size}"


def _n_vocab(corpus: Corpus) -> int:
    return int(corpus.manifest.settings.tokenizer["n_vocab"])


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


def _check_val(corpus: Corpus, cfg: Config) -> None:
    tokens, needed, made = len(corpus.val), cfg.model.context_length + 1, corpus.manifest.settings
    if tokens < needed:
        more = f"prepare another data.dir with more than data.validation_fraction={made.validation_fraction} or with "
        mend = "adopt it again with longer --val files" if made.split == "adopted" else more + "data.split=tail"
        shorter = f", or lower model.context_length={cfg.model.context_length}" if tokens > 1 else ""
        raise DataError(f"validation split holds {tokens:,} tokens, one window needs {needed:,}; {mend}{shorter}")

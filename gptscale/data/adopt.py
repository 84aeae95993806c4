"""A corpus of token files that others made: they stay where they are, and the manifest names them with their hashes."""

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gptscale.data.blocks import hash_blocks
from gptscale.data.file_identity import check_name
from gptscale.data.foreign import TokenFile, map_tokens, recognise
from gptscale.data.job import earlier_manifest
from gptscale.data.manifest import SETTINGS_NAME, Dtype, Manifest, Settings, ShardEntry, Split
from gptscale.data.progress import summary
from gptscale.data.tokenizer import Tokenizer, load_tokenizer
from gptscale.data.unit import read_receipts
from gptscale.errors import DataError

_TOKENS_AT_ONCE = 2**24


def adopt(
    folder: Path,
    train: Sequence[str],
    val: Sequence[str],
    tokenizer: str = "gpt2",
    say: Callable[[str], None] = print,
) -> Manifest:
    """Make a corpus in folder of token files or patterns such as 'data/train_*.bin'; they are read once, not copied.

    Raises DataError for a file that is no token file, or holds ids that the tokenizer has not.
    """
    _check_free(folder)
    made_by = load_tokenizer(tokenizer)
    files: list[tuple[Split, Path]] = [("train", path) for path in _expand(train, "--train")]
    files += [("val", path) for path in _expand(val, "--val")]
    _check_once(files)
    found = [(split, recognise(path)) for split, path in files]
    dtype = _common_dtype([file for _, file in found])
    shards = []
    for split, file in found:
        shards.append(_entry(split, file, made_by))
        say(f"{split}: {file.path.name}, {file.format}: {file.tokens:,} tokens")
    settings = Settings(
        tokenizer=made_by.identity,
        dtype=dtype,
        end_of_text=made_by.end_of_text,
        split="adopted",
        validation_fraction=0,
        split_seed=0,
        documents_per_shard=0,
        source={"kind": "adopted"},
    )
    manifest = Manifest(settings=settings, shards=tuple(shards))
    manifest.save(folder)
    for line in summary(manifest):
        say(line)
    return manifest


def _check_free(folder: Path) -> None:
    """Refuse a folder with a corpus that was prepared, to its end or not."""
    earlier = earlier_manifest(folder)
    if earlier is not None and earlier.settings.split != "adopted":
        raise DataError(f"{folder} holds a corpus that was prepared; choose another folder")
    if (folder / SETTINGS_NAME).exists() or read_receipts(folder):
        raise DataError(f"{folder} holds a corpus whose preparation is not finished; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error.strerror}; choose another folder") from None


def _expand(names: Sequence[str], option: str) -> list[Path]:
    """The files that names and patterns stand for, whole paths in their order."""
    files: list[Path] = []
    for name in names:
        path = os.path.expanduser(name)
        matches = sorted(glob.glob(path)) if glob.has_magic(path) and not os.path.exists(path) else [path]
        if not matches:
            raise DataError(f"{option} {name} matches no file")
        files += [Path(match).absolute() for match in matches]
    for file in files:
        check_name(file)
    return files


def _check_once(files: Sequence[tuple[Split, Path]]) -> None:
    """Refuse a file that is named twice: validation text that is trained on says nothing."""
    seen: dict[Path, Split] = {}
    for split, path in files:
        real = path.resolve()
        if real in seen:
            raise DataError(f"{path} is named by --{seen[real]} and again by --{split}; leave it out of one")
        seen[real] = split


def _common_dtype(files: Sequence[TokenFile]) -> Dtype:
    dtypes = sorted({file.dtype for file in files})
    if len(dtypes) > 1:
        by_type = ", ".join(f"{next(f.path for f in files if f.dtype == dtype)} {dtype}" for dtype in dtypes)
        raise DataError(f"the files hold tokens of two widths ({by_type}); adopt them as two corpora")
    return dtypes[0]


def _entry(split: Split, file: TokenFile, tokenizer: Tokenizer) -> ShardEntry:
    counts = np.zeros(tokenizer.n_vocab, np.int64)
    tokens = map_tokens(file.path, file.dtype, file.offset, file.tokens)
    for start in range(0, file.tokens, _TOKENS_AT_ONCE):
        piece = tokens[start : start + _TOKENS_AT_ONCE]
        if (largest := int(piece.max())) >= tokenizer.n_vocab:
            raise DataError(
                f"{file.path} ({file.format}) holds id {largest:,}, and tokenizer {tokenizer.name} has "
                f"{tokenizer.n_vocab:,}; it is no such file, or choose its --tokenizer"
            )
        counts += np.bincount(piece, minlength=tokenizer.n_vocab)
    sha256, blocks = hash_blocks(file.path)
    return ShardEntry(
        file=str(file.path),
        offset=file.offset,
        split=split,
        tokens=file.tokens,
        documents=int(counts[tokenizer.end_of_text]),
        text_bytes=int(counts @ tokenizer.token_bytes),
        sha256=sha256,
        blocks_sha256=blocks,
        starts_sha256=None,
    )

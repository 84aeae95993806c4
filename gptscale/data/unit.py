"""A work unit: a range of source documents, which becomes a training shard, a validation shard and a receipt.

Where its text has more tokens than a shard can count, a unit writes further shards.

What a unit writes depends on its documents and the corpus' settings alone, so units can be made in any order,
by any number of processes, and by two of them at once. The receipt is written last: a unit without one is made again.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from gptscale.config.data import DataConfig
from gptscale.data.columns import long_enough
from gptscale.data.files import write_whole
from gptscale.data.manifest import Record, Settings, ShardEntry, Split, hash_json
from gptscale.data.shard import ShardWriter, starts_path
from gptscale.data.side import BATCH_BYTES, Side, UnitShard
from gptscale.data.sources import Source
from gptscale.data.split import Documents, split_documents
from gptscale.data.streamed import Streamed
from gptscale.data.texts import Texts, flat
from gptscale.data.tokenizer import Tokenizer
from gptscale.disk import hash_file

_RECEIPT = re.compile(r"unit-(\d+)\.json")
_SHARD = re.compile(r"(?:train|val)-(\d{5,})(?:-\d+)?\.(?:bin|starts\.npy)")


@dataclass(frozen=True)
class Unit:
    """Documents start to stop - 1 of the source; all of file `number` where stop is None."""

    number: int
    start: int
    stop: int | None


class Receipt(Record):
    """What a finished unit wrote, and under which settings (their key)."""

    key: str
    shards: tuple[ShardEntry, ...]
    documents: int = 0
    """Those that were read."""
    left_out: int = 0
    """Those that were too short or too long."""
    digest: str | None = None
    """The SHA-256 of the file's name and all the rest; null in a receipt that is older than digests."""


def cut_units(source: Source | Streamed, documents_per_shard: int) -> list[Unit]:
    """The units of a source; only the last is shorter than documents_per_shard. A streamed file is one unit."""
    if isinstance(source, Streamed):
        return [Unit(i, 0, None) for i in range(source.files)]
    starts = range(0, len(source), documents_per_shard)
    return [Unit(i, start, min(start + documents_per_shard, len(source))) for i, start in enumerate(starts)]


def write_unit(
    unit: Unit, source: Source | Streamed, tokenizer: Tokenizer, cfg: DataConfig, settings: Settings
) -> "WrittenUnit":
    """Tokenize a unit's documents and write them under temporary names."""
    documents = left_out = 0
    with ExitStack() as stack:

        def open_shard(split: Split, number: int) -> UnitShard:
            path = cfg.folder / shard_name(split, unit.number, number)
            return UnitShard(split, stack.enter_context(ShardWriter(path, settings.dtype)), settings.end_of_text)

        train, val = (Side(partial(open_shard, split)) for split in ("train", "val"))
        for texts in _batches(source, unit):
            batch = Documents(np.arange(documents, documents + len(texts)) + unit.start, texts)
            documents += len(texts)
            kept = long_enough(texts, cfg.given_source)
            batch = batch if kept is None else batch.where(np.asarray(kept))
            left_out += len(texts) - len(batch.rows)
            for part, of_it in zip((train, val), split_documents(batch, cfg), strict=True):
                part.add(of_it, tokenizer)
        for part in (train, val):
            part.encode_waiting(tokenizer)
        path = receipt_path(cfg.folder, unit.number)
        return WrittenUnit(path, settings.key, (train, val), documents, left_out, stack.pop_all())


@dataclass(frozen=True)
class WrittenUnit:
    """A unit whose shards are written, but neither safe on disk nor under their names."""

    receipt_path: Path
    key: str
    sides: tuple[Side, Side]
    documents: int
    left_out: int
    stack: ExitStack

    def seal(self) -> Receipt:
        """Force the shards to disk, read them back and hash them; then write the receipt."""
        with self.stack:
            shards = tuple(shard.finish() for side in self.sides for shard in side.shards)
        receipt = Receipt(key=self.key, shards=shards, documents=self.documents, left_out=self.left_out)
        fields = receipt.model_dump(mode="json", exclude={"digest"})
        receipt = receipt.model_copy(update={"digest": hash_json([self.receipt_path.name, fields])})
        write_whole(self.receipt_path, receipt.model_dump_json().encode())
        return receipt


def finished(folder: Path, unit: Unit, key: str) -> Receipt | None:
    """What a unit wrote under these settings, every file checked by its hash; None if it is to be made."""
    receipt = read_receipt(receipt_path(folder, unit.number))
    if receipt is None or receipt.key != key:
        return None
    return receipt if all(_is_whole(folder, shard) for shard in receipt.shards) else None


def remove_unit(folder: Path, number: int) -> None:
    """Delete what a unit wrote, the receipt first."""
    receipt_path(folder, number).unlink(missing_ok=True)
    for split in ("train", "val"):
        first = folder / shard_name(split, number)
        for shard in (first, *folder.glob(f"{first.stem}-*.bin")):
            shard.unlink(missing_ok=True)
            starts_path(shard).unlink(missing_ok=True)


def remove_unnamed(folder: Path, shards: Iterable[ShardEntry]) -> None:
    """Delete shards other than these: a writer was killed when they had their names, and no receipt yet."""
    named = {name for shard in shards for name in (shard.file, starts_path(Path(shard.file)).name)}
    for path in folder.iterdir():
        if _SHARD.fullmatch(path.name) and path.name not in named:
            path.unlink(missing_ok=True)


def read_receipt(path: Path) -> Receipt | None:
    """A unit's receipt; None if there is none, or if it is damaged or another unit's."""
    try:
        content = path.read_bytes()
        receipt = Receipt.model_validate_json(content)
    except (FileNotFoundError, ValidationError):
        return None
    fields = json.loads(content)  # and not what was made of them: a later version may have more of them
    fields.pop("digest", None)
    return receipt if receipt.digest in (None, hash_json([path.name, fields])) else None


def read_receipts(folder: Path) -> dict[int, Receipt | None]:
    """The receipt of every unit that has one, by the unit's number; None for a damaged one."""
    found = ((path, _RECEIPT.fullmatch(path.name)) for path in folder.glob("unit-*.json"))
    return {int(match[1]): read_receipt(path) for path, match in found if match}


def receipt_path(folder: Path, number: int) -> Path:
    """Where the receipt of a unit lies."""
    return folder / f"unit-{number:05d}.json"


def shard_name(split: str, number: int, shard: int = 0) -> str:
    """The file name of a unit's shard; those behind the first, 0, say which they are."""
    return f"{split}-{number:05d}-{shard}.bin" if shard else f"{split}-{number:05d}.bin"


def unit_of(shard: str) -> int:
    """The number of the unit that wrote a shard, from the shard's file name."""
    match = _SHARD.fullmatch(shard)
    assert match is not None
    return int(match[1])


def _is_whole(folder: Path, shard: ShardEntry) -> bool:
    assert shard.starts_sha256 is not None
    path = folder / shard.file
    wanted = {starts_path(path): shard.starts_sha256, path: shard.sha256}
    return all(file.is_file() and hash_file(file) == sha256 for file, sha256 in wanted.items())


def _batches(source: Source | Streamed, unit: Unit) -> Iterator[Texts]:
    """The texts of a unit's documents, a few megabytes at once."""
    if isinstance(source, Streamed):
        read = source.read_file(unit.number)
    else:
        assert unit.stop is not None
        read = source.read(unit.start, unit.stop)
    for texts in read:
        _, offsets = flat(texts)
        start = 0
        while start < len(texts):
            stop = int(np.searchsorted(offsets, offsets[start] + BATCH_BYTES, "right")) - 1
            stop = max(start + 1, stop)
            yield texts.slice(start, stop - start)
            start = stop

"""A work unit: a range of source documents, which becomes a training shard, a validation shard and a receipt.

What a unit writes depends on its documents and the corpus' settings alone, so units can be made in any order,
by any number of processes. The receipt is written last: a unit without one is made again.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from gptscale.config.schema import DataConfig
from gptscale.data.files import write_whole
from gptscale.data.manifest import Record, Settings, ShardEntry, Split
from gptscale.data.shard import Tokens, starts_path, write_shard
from gptscale.data.sources import Source
from gptscale.data.split import split_text
from gptscale.data.tokenizer import Ids, Tokenizer, utf8
from gptscale.disk import hash_file

_RECEIPT = re.compile(r"unit-(\d+)\.json")
_READ_DOCUMENTS = 64  # from the source at once
_BATCH_CHARACTERS = 2**23  # to the tokenizer at once, which bounds the text held in memory


@dataclass(frozen=True)
class Unit:
    """Documents start to stop - 1 of the source."""

    number: int
    start: int
    stop: int


class Receipt(Record):
    """What a finished unit wrote, and under which settings (their key)."""

    key: str
    shards: tuple[ShardEntry, ...]


def cut_units(documents: int, documents_per_shard: int) -> list[Unit]:
    """The units of a source; only the last is shorter than documents_per_shard."""
    starts = range(0, documents, documents_per_shard)
    return [Unit(i, start, min(start + documents_per_shard, documents)) for i, start in enumerate(starts)]


def make_unit(
    unit: Unit, source: Source, tokenizer: Tokenizer, cfg: DataConfig, settings: Settings
) -> tuple[ShardEntry, ...]:
    """Tokenize a unit's documents, write its shards and then its receipt."""
    sides: dict[Split, _Side] = {s: _Side(settings.dtype, settings.end_of_text) for s in ("train", "val")}
    for rows in _batches(source, unit):
        pairs = [(row, *split_text(text, utf8(text), cfg)) for row, text in rows]
        sides["train"].add([(row, train) for row, train, _ in pairs if train], tokenizer)
        sides["val"].add([(row, val) for row, _, val in pairs if val], tokenizer)
    shards = tuple(side.write(cfg.dir, split, unit) for split, side in sides.items() if side.starts)
    receipt = Receipt(key=settings.key, shards=shards)
    write_whole(receipt_path(cfg.dir, unit.number), receipt.model_dump_json().encode())
    return shards


def finished_shards(folder: Path, unit: Unit, key: str) -> tuple[ShardEntry, ...] | None:
    """What a unit wrote under these settings, every file checked by its hash; None if it is to be made."""
    receipt = read_receipt(receipt_path(folder, unit.number))
    if receipt is None or receipt.key != key:
        return None
    return receipt.shards if all(_is_whole(folder, shard) for shard in receipt.shards) else None


def remove_unit(folder: Path, number: int) -> None:
    """Delete what a unit wrote, the receipt first."""
    receipt_path(folder, number).unlink(missing_ok=True)
    for split in ("train", "val"):
        shard = folder / shard_name(split, number)
        shard.unlink(missing_ok=True)
        starts_path(shard).unlink(missing_ok=True)


def read_receipt(path: Path) -> Receipt | None:
    """A unit's receipt; None if there is none or it is damaged."""
    try:
        return Receipt.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def read_receipts(folder: Path) -> dict[int, Receipt | None]:
    """The receipt of every unit that has one, by the unit's number; None for a damaged one."""
    found = ((path, _RECEIPT.fullmatch(path.name)) for path in folder.glob("unit-*.json"))
    return {int(match[1]): read_receipt(path) for path, match in found if match}


def receipt_path(folder: Path, number: int) -> Path:
    """Where the receipt of a unit lies."""
    return folder / f"unit-{number:05d}.json"


def shard_name(split: str, number: int) -> str:
    """The file name of a unit's shard."""
    return f"{split}-{number:05d}.bin"


def _is_whole(folder: Path, shard: ShardEntry) -> bool:
    path = folder / shard.file
    wanted = {starts_path(path): shard.starts_sha256, path: shard.sha256}
    return all(file.is_file() and hash_file(file) == sha256 for file, sha256 in wanted.items())


def _batches(source: Source, unit: Unit) -> Iterator[list[tuple[int, str]]]:
    """Rows and texts of a unit's documents, as many at once as make a batch."""
    batch: list[tuple[int, str]] = []
    characters = 0
    for start in range(unit.start, unit.stop, _READ_DOCUMENTS):
        texts = source.read(start, min(start + _READ_DOCUMENTS, unit.stop))
        batch.extend(enumerate(texts, start))
        characters += sum(map(len, texts))
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    yield batch


@dataclass
class _Side:
    """The tokens of one split of a unit, as they grow."""

    dtype: str
    end_of_text: int | None
    pieces: list[Tokens] = field(default_factory=list)  # one for each batch
    starts: list[tuple[int, int]] = field(default_factory=list)
    tokens: int = 0
    text_bytes: int = 0

    def add(self, rows: list[tuple[int, str]], tokenizer: Tokenizer) -> None:
        encoded = tokenizer.encode_batch([text for _, text in rows])
        prefix = [] if self.end_of_text is None else [np.array([self.end_of_text], np.uint32)]
        parts: list[Ids] = []
        for (row, text), ids in zip(rows, encoded, strict=True):
            self.starts.append((self.tokens, row))
            self.tokens += len(prefix) + len(ids)
            self.text_bytes += len(utf8(text))
            parts += [*prefix, ids]
        if parts:
            self.pieces.append(np.concatenate(parts, dtype=self.dtype, casting="same_kind"))

    def write(self, folder: Path, split: Split, unit: Unit) -> ShardEntry:
        path = folder / shard_name(split, unit.number)
        write_shard(path, np.concatenate(self.pieces), np.array(self.starts, np.int64))
        return ShardEntry(
            file=path.name,
            split=split,
            tokens=self.tokens,
            documents=len(self.starts),
            text_bytes=self.text_bytes,
            sha256=hash_file(path),
            starts_sha256=hash_file(starts_path(path)),
        )

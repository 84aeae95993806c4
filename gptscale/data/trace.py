"""From a sample back to its documents: which tokens a position of the run reads, and whose they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gptscale.data.corpus import Corpus, open_entry
from gptscale.data.manifest import ShardEntry
from gptscale.data.sampler import MixedSampler
from gptscale.data.shard import read_starts, starts_path
from gptscale.data.tokenizer import Tokenizer
from gptscale.data.unit import unit_of
from gptscale.data.verify import HashedFile, damage_of
from gptscale.errors import DataError


@dataclass(frozen=True)
class Stretch:
    """A stretch of one document in a sample."""

    corpus: str
    shard: str
    offset: int
    """Tokens of the shard before the stretch."""
    document: int
    """The document's number in the shard, from 0."""
    row: int
    """The document's number in what has those rows, from 0."""
    rows_of: str
    """The source, or the one of its files that a unit streamed."""
    skipped: int
    """Tokens of the document before the stretch."""
    tokens: int
    text: str


@dataclass(frozen=True)
class TracedSample:
    """What one position of a run reads."""

    position: int
    epoch: int
    """As the sample's own corpus counts them."""
    sample: int
    start: int
    """First token in the training split; of a mixture, in its corpora one after another."""
    stop: int
    """Behind the last token, which is a target only."""
    pieces: list[Stretch]


@dataclass(frozen=True)
class _Shard:
    """A shard and the corpus that it belongs to."""

    folder: Path
    entry: ShardEntry
    dtype: str
    source: dict[str, Any]
    """As the corpus' settings describe it."""


class Documents:
    """The documents that are trained on, found by a token's place in the stream of all shards of all corpora.

    An adopted file counts as one document, since it does not say where its documents begin.
    """

    def __init__(self, corpora: Sequence[tuple[Path, Corpus]], tokenizer: Tokenizer) -> None:
        self._shards = [
            _Shard(folder, entry, corpus.manifest.settings.dtype, corpus.manifest.settings.source)
            for folder, corpus in corpora
            for entry in corpus.manifest.of("train")
        ]
        self._tokenizer = tokenizer
        self._borders = np.cumsum([0, *(shard.entry.tokens for shard in self._shards)])
        self._starts = cache(_checked_starts)
        self._tokens = cache(open_entry)

    def pieces(self, start: int, stop: int) -> Iterator[Stretch]:
        """Cut tokens start to stop - 1 of the stream where a document or a shard ends."""
        while start < stop:
            shard = int(np.searchsorted(self._borders, start, side="right")) - 1
            first = int(self._borders[shard])
            piece = self._piece(self._shards[shard], start - first, stop - first)
            yield piece
            start += piece.tokens

    def _piece(self, shard: _Shard, offset: int, stop: int) -> Stretch:
        """What begins at an offset of a shard, up to stop or the document's end."""
        entry = shard.entry
        begins = self._document_starts(shard)
        document = int(np.searchsorted(begins[:, 0], offset, side="right")) - 1
        own, row = begins[document].tolist()
        end = int(begins[document + 1, 0]) if document + 1 < len(begins) else entry.tokens
        ids = self._tokens(shard.folder, entry, shard.dtype)[offset : min(end, stop)].tolist()
        return Stretch(
            corpus=str(shard.folder),
            shard=entry.file,
            offset=offset,
            document=document,
            row=row,
            rows_of=_rows_of(shard.source, entry.file),
            skipped=offset - own,
            tokens=len(ids),
            text=self._tokenizer.decode(ids),
        )

    def _document_starts(self, shard: _Shard) -> npt.NDArray[np.int64]:
        if shard.entry.starts_sha256 is None:
            return np.zeros((1, 2), np.int64)
        return self._starts(shard.folder / shard.entry.file, shard.entry.starts_sha256)


def _checked_starts(shard: Path, sha256: str) -> npt.NDArray[np.int64]:
    """A shard's document starts, which nobody has looked at if its corpus is large. Raises DataError for damage."""
    if problem := damage_of(HashedFile(starts_path(shard), "document starts", sha256)):
        raise DataError(problem)
    return read_starts(shard)


def _rows_of(source: dict[str, Any], shard: str) -> str:
    """What counts the rows of a shard: each file of a streamed source is a unit, and empty ones are none."""
    if not source.get("streaming"):
        return "the source"
    number = unit_of(shard)
    names = [file["name"] for file in source.get("files", ()) if file["bytes"]]
    return names[number] if number < len(names) else f"file {number + 1} of the source"


def trace_positions(
    sampler: MixedSampler, documents: Documents, positions: npt.NDArray[np.int64], context_length: int
) -> Iterator[TracedSample]:
    """The samples at positions of a run, with their documents."""
    epochs, samples = sampler.locate(positions)
    columns = (positions, epochs, samples, sampler.starts(positions))
    for position, epoch, sample, start in zip(*(column.tolist() for column in columns), strict=True):
        stop = start + context_length + 1
        yield TracedSample(
            position=position,
            epoch=epoch,
            sample=sample,
            start=start,
            stop=stop,
            pieces=list(documents.pieces(start, stop)),
        )

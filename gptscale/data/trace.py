"""From a sample back to its documents: which tokens a position of the run reads, and whose they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gptscale.data.loader import Sampler
from gptscale.data.manifest import ShardEntry
from gptscale.data.shard import open_shard, read_starts
from gptscale.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Piece:
    """A stretch of one document in a sample."""

    corpus: str
    shard: str
    offset: int
    """Tokens of the shard before the stretch."""
    document: int
    """The document's number in the shard, from 0."""
    row: int
    """The document's number in the source, from 0."""
    skipped: int
    """Tokens of the document before the stretch."""
    tokens: int
    text: str


@dataclass(frozen=True)
class TracedSample:
    """What one position of a run reads."""

    position: int
    epoch: int
    sample: int
    start: int
    """First token in the training split."""
    stop: int
    """Behind the last token, which is a target only."""
    pieces: list[Piece]


class Documents:
    """The documents of a split, found by a token's place in the stream of its shards."""

    def __init__(self, folder: Path, shards: Sequence[ShardEntry], tokenizer: Tokenizer) -> None:
        self._folder = folder
        self._shards = list(shards)
        self._tokenizer = tokenizer
        self._borders = np.cumsum([0, *(shard.tokens for shard in shards)])
        self._starts = cache(read_starts)
        self._tokens = cache(open_shard)

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Cut tokens start to stop - 1 of the stream where a document or a shard ends."""
        while start < stop:
            shard = int(np.searchsorted(self._borders, start, side="right")) - 1
            first = int(self._borders[shard])
            piece = self._piece(self._shards[shard], start - first, stop - first)
            yield piece
            start += piece.tokens

    def _piece(self, shard: ShardEntry, offset: int, stop: int) -> Piece:
        """What begins at an offset of a shard, up to stop or the document's end."""
        path = self._folder / shard.file
        begins: npt.NDArray[np.int64] = self._starts(path)
        document = int(np.searchsorted(begins[:, 0], offset, side="right")) - 1
        own, row = begins[document].tolist()
        end = int(begins[document + 1, 0]) if document + 1 < len(begins) else shard.tokens
        ids = self._tokens(path)[offset : min(end, stop)].tolist()
        return Piece(
            corpus=str(self._folder),
            shard=shard.file,
            offset=offset,
            document=document,
            row=row,
            skipped=offset - own,
            tokens=len(ids),
            text=self._tokenizer.decode(ids),
        )


def trace_positions(
    sampler: Sampler, documents: Documents, positions: npt.NDArray[np.int64], context_length: int
) -> Iterator[TracedSample]:
    """The samples at positions of a run, with their documents."""
    for position, start in zip(positions.tolist(), sampler.starts(positions).tolist(), strict=True):
        stop = start + context_length + 1
        yield TracedSample(
            position=position,
            epoch=position // sampler.samples,
            sample=start // sampler.stride,
            start=start,
            stop=stop,
            pieces=list(documents.pieces(start, stop)),
        )

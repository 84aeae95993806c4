"""Shards as one sequence of tokens."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gptscale.data.shard import Tokens


class TokenStream:
    """The concatenation of shards, read where it is needed; nothing is held in memory."""

    def __init__(self, shards: Sequence[Tokens]) -> None:
        self.shards = [np.asarray(shard) for shard in shards]  # a slice of a memmap takes several times as long
        # _borders[i] is where shard i begins; the last border is the length of the stream.
        self._borders = np.cumsum([0, *(len(shard) for shard in shards)])
        self._firsts: list[int] = self._borders.tolist()
        self._dtype = np.result_type(np.uint16, *{shard.dtype for shard in shards})

    def __len__(self) -> int:
        return int(self._borders[-1])

    def read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Tokens start to start + count - 1, (count,), across the borders of shards."""
        assert 0 <= start <= start + count <= len(self), (start, count, len(self))
        out = np.empty(count, np.int64)
        filled, shard = 0, int(np.searchsorted(self._borders, start, side="right")) - 1
        while filled < count:
            at = start + filled - int(self._borders[shard])
            piece = self.shards[shard][at : at + count - filled]
            out[filled : filled + len(piece)] = piece
            filled, shard = filled + len(piece), shard + 1
        return out

    def windows(self, starts: npt.NDArray[np.int64], length: int) -> Tokens:
        """The tokens from each start on, (n, length) for starts (n,), as wide as they are in the shards."""
        assert starts.size == 0 or starts.min() >= 0
        shards = np.searchsorted(self._borders, starts, side="right") - 1
        inside = starts + length <= self._borders[np.minimum(shards + 1, len(self.shards))]
        if len(starts) and inside.all() and (shards == shards[0]).all():
            return _gather(self.shards[shards[0]], starts - self._borders[shards[0]], length)
        out = np.empty((len(starts), length), self._dtype)
        for row, start, shard, whole in zip(out, starts.tolist(), shards.tolist(), inside.tolist(), strict=True):
            at = start - self._firsts[shard]
            row[:] = self.shards[shard][at : at + length] if whole else self.read(start, length)
        return out


def _gather(tokens: Tokens, starts: npt.NDArray[np.int64], length: int) -> Tokens:
    """Windows of one array, in one copy."""
    shape, step = (len(tokens) - length + 1, length), tokens.itemsize
    windows: Tokens = np.ndarray(shape, tokens.dtype, tokens, strides=(step, step))
    return windows[starts]

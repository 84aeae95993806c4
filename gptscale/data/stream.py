"""Shards as one sequence of tokens."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from gptscale.data.shard import Tokens


class TokenStream:
    """The concatenation of shards, read where it is needed; nothing is held in memory."""

    def __init__(self, shards: Sequence[Tokens]) -> None:
        self.shards = list(shards)
        # _borders[i] is where shard i begins; the last border is the length of the stream.
        self._borders = np.cumsum([0, *(len(shard) for shard in shards)])

    def __len__(self) -> int:
        return int(self._borders[-1])

    def read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Tokens start to start + count - 1, (count,), across the borders of shards."""
        assert 0 <= start <= start + count <= len(self), (start, count, len(self))
        out = np.empty(count, np.int64)
        filled, shard = 0, self._shard_of(start)
        while filled < count:
            at = start + filled - int(self._borders[shard])
            piece = self.shards[shard][at : at + count - filled]
            out[filled : filled + len(piece)] = piece
            filled, shard = filled + len(piece), shard + 1
        return out

    def windows(self, starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
        """The tokens from each start on, (n, length) for starts (n,)."""
        assert starts.size == 0 or starts.min() >= 0
        out = np.empty((len(starts), length), np.int64)
        shards = np.searchsorted(self._borders, starts, side="right") - 1
        inside = starts + length <= self._borders[np.minimum(shards + 1, len(self.shards))]
        for shard in np.unique(shards[inside]):
            mine = inside & (shards == shard)
            views = sliding_window_view(self.shards[shard], length)
            out[mine] = views[starts[mine] - self._borders[shard]]  # one copy, widened on the way
        for row in np.flatnonzero(~inside):
            out[row] = self.read(int(starts[row]), length)
        return out

    def _shard_of(self, position: int) -> int:
        return int(np.searchsorted(self._borders, position, side="right")) - 1

"""The keys and values of tokens that were read before. Axes: B rows, H heads, S slots, D head width."""

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """What attention needs of the tokens before: slot s of a row holds its token s.

    The first pass of a model reads whole rows, filled up on the right; a filling is never seen, since it comes
    later than all that is real, and its slots are overwritten. Every pass after that reads one token of each row.
    """

    def __init__(self, lengths: Sequence[int], n_layers: int, capacity: int) -> None:
        self.capacity = capacity
        self._hold(lengths)
        self.layers = [LayerCache(self) for _ in range(n_layers)]
        self.slots: Tensor | None = None
        """In which slot each row's token of this pass goes, (B,); None in the first pass."""
        self.mask: Tensor | None = None
        """Which slots each row sees, (B, 1, 1, S); None where all see the same."""

    def _hold(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        """Tokens of each row that were read when the coming pass is over."""
        self.used = max(lengths)
        """Slots that are in use in any row."""
        self.even = min(lengths) == self.used
        """Whether all rows have the same length, so that their tokens lie in one slice."""

    def next_pass(self, device: torch.device) -> None:
        """Make room for one more token of each row."""
        self.slots = torch.tensor(self.lengths, device=device)
        self._hold([length + 1 for length in self.lengths])
        self.mask = None
        if not self.even:
            self.mask = (torch.arange(self.used, device=device) <= self.slots[:, None])[:, None, None]

    def positions(self, tokens: Tensor) -> Tensor:
        """Where the tokens (B, T) of this pass stand, (T,) or (B, 1)."""
        if self.slots is None:
            return torch.arange(tokens.shape[1], device=tokens.device)
        return self.slots[:, None]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        if list(rows) == list(range(len(self.lengths))):
            return
        self._hold([self.lengths[row] for row in rows])
        for layer in self.layers:
            layer.select(rows)

    def replace(self, rows: Sequence[int], other: "KVCache") -> None:
        """Let these rows hold what another cache holds, row by row."""
        for row, length in zip(rows, other.lengths, strict=True):
            self.lengths[row] = length
        for layer, read in zip(self.layers, other.layers, strict=True):
            layer.replace(rows, read)


class LayerCache:
    """The part of one block."""

    def __init__(self, shared: KVCache) -> None:
        self._shared = shared
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None, bool]:
        """Put the keys and values (B, H, T, D) of this pass in.

        Gives those that its queries see, which slots are masked, and whether a query sees no later ones than itself.
        """
        if self._keys is None or self._values is None:
            self._keys, self._values = self._room(keys), self._room(values)
            return keys, values, None, True
        self._put(self._keys, keys)
        self._put(self._values, values)
        used = self._shared.used
        return self._keys[:, :, :used], self._values[:, :, :used], self._shared.mask, False

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        assert self._keys is not None
        assert self._values is not None
        self._keys, self._values = self._selected(self._keys, rows), self._selected(self._values, rows)

    def replace(self, rows: Sequence[int], other: "LayerCache") -> None:
        """Let these rows hold what another cache holds, row by row."""
        assert self._keys is not None
        assert self._values is not None
        assert other._keys is not None
        assert other._values is not None
        index, length = torch.tensor(rows, device=self._keys.device), other._keys.shape[2]
        self._keys[index, :, :length], self._values[index, :, :length] = other._keys, other._values

    def _room(self, first: Tensor) -> Tensor:
        b, h, t, d = first.shape
        # A slot that is masked counts 0 times, and 0 times what stood in memory there may be nan.
        room = first.new_zeros(b, h, self._shared.capacity, d)
        room[:, :, :t] = first
        return room

    def _put(self, room: Tensor, new: Tensor) -> None:
        shared = self._shared
        if shared.even:
            room[:, :, shared.used - 1] = new[:, :, 0]
        else:
            room[torch.arange(len(room), device=room.device), :, shared.slots] = new[:, :, 0]

    def _selected(self, room: Tensor, rows: Sequence[int]) -> Tensor:
        used = self._shared.used
        index = torch.tensor(rows, device=room.device)
        taken = room[:, :, :used].index_select(0, index)
        if len(rows) == len(room):
            room[:, :, :used] = taken
            return room
        return self._room(taken)

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
    """The part of one block: keys and values together, (2, B, H, S, D)."""

    def __init__(self, shared: KVCache) -> None:
        self._shared = shared
        self._held: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None, bool]:
        """Put the keys and values (B, H, T, D) of this pass in.

        Gives those that its queries see, which slots are masked, and whether a query sees no later ones than itself.
        """
        shared, new = self._shared, torch.stack((keys, values))
        if self._held is None:
            self._held = self._room(new)
            return keys, values, None, True
        if shared.even:
            self._held[..., shared.used - 1, :] = new[..., 0, :]
        else:
            rows = torch.arange(len(keys), device=keys.device)
            self._held[:, rows, :, shared.slots] = new[..., 0, :].transpose(0, 1)  # what two indices find, (B, 2, H, D)
        seen_keys, seen_values = self._held[..., : shared.used, :]
        return seen_keys, seen_values, shared.mask, False

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        assert self._held is not None
        index, used = torch.tensor(rows, device=self._held.device), self._shared.used
        taken = self._held[..., :used, :].index_select(1, index)
        if len(rows) == self._held.shape[1]:
            self._held[..., :used, :] = taken
        else:
            self._held = self._room(taken)

    def replace(self, rows: Sequence[int], other: "LayerCache") -> None:
        """Let these rows hold what another cache holds, row by row."""
        assert self._held is not None
        assert other._held is not None
        index, length = torch.tensor(rows, device=self._held.device), other._held.shape[3]
        self._held[:, index, :, :length] = other._held

    def _room(self, first: Tensor) -> Tensor:
        *outer, t, d = first.shape
        # A slot that is masked counts 0 times, and 0 times what stood in memory there may be nan.
        room = first.new_zeros(*outer, self._shared.capacity, d)
        room[..., :t, :] = first
        return room

"""Muon under ZeRO, which cuts matrices into flat pieces: each is put together on one rank, and its update cut again.

The momentum is elementwise and stays where the pieces are. An orthogonalization takes a whole matrix, and rounds it to
bf16 first (where the device has it); so bf16 travels, and the numbers are those of `Muon`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gptscale.runtime import ranks
from gptscale.runtime.fragments import Piece
from gptscale.runtime.muon import momentum_step
from gptscale.runtime.muon_exchange import Exchange, is_muon


class ZeroMuon(torch.optim.Optimizer):
    """The groups of a Muon, and of an AdamW for the rest, on the flat tensors that DeepSpeed puts in them.

    All ranks call `step` together. Matrices are orthogonalized on `device`, wherever the weights are kept.
    """

    def __init__(self, groups: list[dict[str, Any]], device: torch.device) -> None:
        super().__init__(groups, {})
        self._adamw = torch.optim.AdamW([group for group in self.param_groups if not is_muon(group)])
        self._device = device
        self._exchanges: dict[Tensor, Exchange] = {}

    def place(self, flats: list[Tensor], pieces: list[Piece]) -> None:
        """Learn what lies in this rank's flat tensors, and tell the others. All ranks call this together."""
        everywhere = ranks.gather(pieces)
        for number, flat in enumerate(flats):
            held = [[piece for piece in mine if piece.flat == number] for mine in everywhere]
            self._exchanges[flat] = Exchange(held, self._device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update the flat tensors that are in the groups now: DeepSpeed shows one group after another."""
        assert closure is None
        for group in filter(is_muon, self.param_groups):
            for flat in group["params"]:
                if flat.grad is not None:
                    self._update(flat, flat.grad, group)
        # Under offload the groups that are not shown have their gradients too.
        self._adamw.param_groups = [group for group in self.param_groups if not is_muon(group)]
        self._adamw.state = self.state
        self._adamw.step()

    def _update(self, flat: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        moved = momentum_step(self.state[flat], gradient, group)
        flat.mul_(1 - group["lr"] * group["weight_decay"])
        for piece, direction, rate in self._exchanges[flat].updates(moved, group):
            flat.narrow(0, piece.offset, piece.numel).add_(direction.to(flat.device), alpha=-rate)

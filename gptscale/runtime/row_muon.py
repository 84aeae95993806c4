"""Muon under FSDP2, where a rank has some rows of every matrix.

As under ZeRO, each matrix is put together on one rank and worked on there, with two exchanges for all of them;
torch.optim.Muon on sharded matrices works on each of them everywhere, and exchanges several times for every one.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim._muon import _adjust_lr

from gptscale.runtime import ranks
from gptscale.runtime.fragments import Piece
from gptscale.runtime.muon import momentum_step, muon_dtype, orthogonalized
from gptscale.runtime.muon_exchange import Exchange, is_muon


class RowMuon(torch.optim.Optimizer):
    """The groups of a Muon, and of an AdamW for the rest, on parameters that FSDP2 has sharded.

    All ranks call `step` together. The momentum is elementwise and stays where the rows are.
    """

    def __init__(self, groups: list[dict[str, Any]], device: torch.device) -> None:
        """All ranks call this together, to tell each other what they hold."""
        super().__init__(groups, {})
        self._muon = [group for group in self.param_groups if is_muon(group)]
        self._adamw = torch.optim.AdamW([group for group in self.param_groups if not is_muon(group)])
        self._dtype = muon_dtype(device)
        held = ranks.gather([rows_held(group["params"]) for group in self._muon])
        self._exchanges = [
            Exchange([of_rank[number] for of_rank in held], dist.get_rank(), device, self._dtype)
            for number in range(len(self._muon))
        ]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters, unless `found_inf` says that a gradient is not finite."""
        assert closure is None
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return
        for group, exchange in zip(self._muon, self._exchanges, strict=True):
            self._update(group, exchange)
        self._adamw.state = self.state
        self._adamw.step()

    def _update(self, group: dict[str, Any], exchange: Exchange) -> None:
        parameters = group["params"]
        moved = [_rows(momentum_step(self.state[p], p.grad, group)) for p in parameters if p.grad is not None]
        if len(moved) < len(parameters):  # `materialize_state` gives one gradient after another, for the state alone
            assert group["lr"] == 0
            return
        matrices = exchange.gather(torch.cat(moved))
        for name, matrix in matrices.items():
            matrices[name] = orthogonalized(matrix, group, self._dtype)
        rows = {str(number): _rows(p) for number, p in enumerate(parameters)}
        for mine in rows.values():
            mine.mul_(1 - group["lr"] * group["weight_decay"])
        for piece, direction in exchange.scatter(matrices):
            rate = _adjust_lr(group["lr"], group["adjust_lr_fn"], torch.Size(piece.shape))
            rows[piece.name].add_(direction, alpha=-rate)


def rows_held(parameters: list[nn.Parameter]) -> list[Piece]:
    """This rank's rows of each parameter, as they follow each other in a concatenation; named by their number."""
    pieces, offset = [], 0
    for number, p in enumerate(parameters):
        assert isinstance(p, DTensor)
        local, first = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
        columns = p.shape[1]
        if local[0]:
            pieces.append(Piece(str(number), tuple(p.shape), first[0] * columns, local[0] * columns, 0, offset))
        offset += local[0] * columns
    return pieces


def _rows(sharded: Tensor) -> Tensor:
    """This rank's part, flat."""
    assert isinstance(sharded, DTensor)
    return sharded.to_local().reshape(-1)

"""Muon under FSDP2, where a rank has some rows of every matrix.

As under ZeRO, one rank of a copy puts a matrix together and works on it, with two exchanges for all of them;
torch.optim.Muon on sharded matrices works on each of them everywhere, and exchanges several times for every one.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from gptscale.runtime import ranks
from gptscale.runtime.fragments import Piece
from gptscale.runtime.muon import momentum_step
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
        among = _shard_group(self._muon)
        held = ranks.gather([rows_held(group["params"]) for group in self._muon])
        held = [held[rank] for rank in dist.get_process_group_ranks(among)]
        self._exchanges = [Exchange(list(of_group), device, among) for of_group in zip(*held, strict=True)]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters, unless `found_inf` says that a gradient is not finite."""
        assert closure is None
        if getattr(self, "found_inf", False):
            return
        for group, exchange in zip(self._muon, self._exchanges, strict=True):
            self._update(group, exchange)
        self._adamw.state = self.state
        self._adamw.step()

    def _update(self, group: dict[str, Any], exchange: Exchange) -> None:
        parameters = group["params"]
        graded = [p for p in parameters if p.grad is not None]
        moved = [local_rows(momentum_step(self.state[p], p.grad, group)).to(exchange.dtype) for p in graded]
        if len(moved) < len(parameters):  # `materialize_state` gives one gradient after another, for the state alone
            assert group["lr"] == 0
            return
        rows = {str(number): local_rows(p) for number, p in enumerate(parameters)}
        for mine in rows.values():
            mine.mul_(1 - group["lr"] * group["weight_decay"])
        for piece, direction, rate in exchange.updates(torch.cat(moved), group):
            rows[piece.name].add_(direction, alpha=-rate)


def _shard_group(groups: list[dict[str, Any]]) -> dist.ProcessGroup:
    """The ranks that hold one copy of the parameters between them; others do the same work on theirs."""
    sharded = groups[0]["params"][0]
    assert isinstance(sharded, DTensor)
    return sharded.device_mesh.get_group(sharded.device_mesh.ndim - 1)


def rows_held(parameters: list[nn.Parameter]) -> list[Piece]:
    """This rank's rows of each parameter, as they follow each other in a concatenation; named by their number."""
    pieces, offset = [], 0
    for number, p in enumerate(parameters):
        numel = local_rows(p).numel()
        if numel:
            pieces.append(Piece(str(number), tuple(p.shape), first_element(p), numel, 0, offset))
        offset += numel
    return pieces


def first_element(sharded: Tensor) -> int:
    """Where this rank's rows begin in a parameter's row-major flattening."""
    assert isinstance(sharded, DTensor)
    _, offset = compute_local_shape_and_global_offset(sharded.shape, sharded.device_mesh, sharded.placements)
    return offset[0] * math.prod(sharded.shape[1:])


def local_rows(sharded: Tensor) -> Tensor:
    """This rank's rows as a flat view."""
    assert isinstance(sharded, DTensor)
    rows: Tensor = sharded.detach().to_local()  # type: ignore[attr-defined]
    return rows.view(-1)

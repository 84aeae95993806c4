"""Muon's matrices where ranks hold pieces of them: each is put together on one rank, and its update cut again."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gptscale.runtime.fragments import Piece
from gptscale.runtime.muon import adjusted_lr, muon_dtype, orthogonalized


def has_muon(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a group of the optimizer is one of Muon."""
    return any(map(is_muon, optimizer.param_groups))


def is_muon(group: dict[str, Any]) -> bool:
    """Whether a group is one of Muon, ours or torch's."""
    return "ns_steps" in group


class Exchange:
    """The way of matrices from the pieces that the ranks hold to one rank each, and back: one collective each way.

    A rank gets about as many elements as it holds, never the whole model.
    """

    def __init__(self, held: list[list[Piece]], device: torch.device, among: dist.ProcessGroup | None = None) -> None:
        """`held` is what each rank of the group holds, in the same order everywhere; the group is null for all."""
        owners, rank = _owners(held), dist.get_rank(among)
        self._among = among
        self._mine = [[p for p in held[rank] if owners[p.name] == other] for other in range(len(held))]
        self._theirs = [[p for p in pieces if owners[p.name] == rank] for pieces in held]
        self._device, self.dtype = device, muon_dtype(device)

    def updates(self, flat: Tensor, group: dict[str, Any]) -> Iterator[tuple[Piece, Tensor, float]]:
        """Orthogonalize the matrices whose pieces lie in every rank's flat tensor; gives each of this rank's pieces,
        its part of the direction, and the rate by which to go there."""
        matrices = self._gather(flat)
        for name, matrix in matrices.items():
            matrices[name] = orthogonalized(matrix, group, self.dtype)
        for piece, direction in self._scatter(matrices):
            yield piece, direction, adjusted_lr(group, piece.shape)

    def _gather(self, flat: Tensor) -> dict[str, Tensor]:
        """The whole matrices that this rank is to work on, out of every rank's flat tensor."""
        sent = [flat.narrow(0, p.offset, p.numel) for pieces in self._mine for p in pieces]
        parts: dict[str, list[Tensor]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for piece, part in self._swap(sent, self._mine, self._theirs):
            parts.setdefault(piece.name, []).append(part)  # from rank to rank, which is the order within the matrix
            shapes[piece.name] = piece.shape
        return {name: torch.cat(of_one).view(shapes[name]) for name, of_one in parts.items()}

    def _scatter(self, matrices: dict[str, Tensor]) -> Iterator[tuple[Piece, Tensor]]:
        """This rank's pieces of all matrices, after each was worked on where it was whole."""
        whole = {name: matrix.reshape(-1) for name, matrix in matrices.items()}
        sent = [whole[p.name].narrow(0, p.start, p.numel) for pieces in self._theirs for p in pieces]
        return self._swap(sent, self._theirs, self._mine)

    def _swap(
        self, sent: list[Tensor], outgoing: list[list[Piece]], incoming: list[list[Piece]]
    ) -> Iterator[tuple[Piece, Tensor]]:
        to, of = ([sum(p.numel for p in pieces) for pieces in side] for side in (outgoing, incoming))
        nothing = torch.empty(0, dtype=self.dtype, device=self._device)
        received = nothing.new_empty(sum(of))
        dist.all_to_all_single(received, torch.cat([nothing, *(t.to(nothing) for t in sent)]), of, to, self._among)
        pieces = [piece for side in incoming for piece in side]
        return zip(pieces, torch.split(received, [p.numel for p in pieces]), strict=True)


def _owners(held: list[list[Piece]]) -> dict[str, int]:
    """For each matrix the least busy of the ranks that hold something of it; the costliest matrices first."""
    holders: dict[str, list[int]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for rank, pieces in enumerate(held):
        for piece in pieces:
            holders.setdefault(piece.name, []).append(rank)
            shapes[piece.name] = piece.shape
    cost = {name: min(shape) ** 2 * max(shape) for name, shape in shapes.items()}
    busy = [0] * len(held)
    owners = {}
    for name in sorted(cost, key=lambda name: (len(holders[name]), -cost[name], name)):
        owners[name] = min(holders[name], key=lambda rank: (busy[rank], rank))
        busy[owners[name]] += cost[name]
    return owners

"""A copy of a rank's fragments in host memory, from which a checkpoint is written while training goes on."""

from collections.abc import Iterable

import torch
from torch import Tensor

from gptscale.runtime.fragments import Fragment


class Snapshot:
    """Host memory for one rank's share of the state, kept from save to save; pinned where a GPU copies into it."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def take(self, fragments: Iterable[Fragment]) -> list[Fragment]:
        """Copy live fragments; returns when the live ones may change. The copies hold until the next call."""
        live = list(fragments)
        tensors = [t for f in live for t in f.tensors.values()]
        places = self._places(tensors)
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor, non_blocking=True)
        _wait_for_copies(tensors)
        into = iter(places)
        return [
            Fragment(
                f.name,
                f.shape,
                f.start,
                {kind: next(into) for kind in f.tensors},
                {kind: t.detach().cpu().clone() for kind, t in f.scalars.items()},
            )
            for f in live
        ]

    def _places(self, tensors: list[Tensor]) -> list[Tensor]:
        sizes = [t.numel() for t in tensors]
        if sum(sizes) != self._memory.numel():
            self._memory = torch.empty(0)  # the old is given back before the new is taken
            self._memory = torch.empty(sum(sizes), pin_memory=any(t.is_cuda for t in tensors))
        return list(torch.split(self._memory, sizes))


def _wait_for_copies(tensors: list[Tensor]) -> None:
    for device in {t.device for t in tensors if t.is_cuda}:
        torch.cuda.synchronize(device)

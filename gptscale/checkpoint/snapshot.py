"""A copy of a rank's fragments in host memory, from which a checkpoint is written while training goes on."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from gptscale.runtime.fragments import Fragment
from gptscale.weights.files import pack

BLOCK_ELEMENTS = 2**26
"""256 MiB: torch pins blocks of a power of two bytes, and one for everything could be twice what is needed."""


class Snapshot:
    """Host memory for one rank's share of the state, kept from save to save; pinned where a GPU copies into it."""

    def __init__(self) -> None:
        self._memory: list[Tensor] = []

    def take(self, fragments: Iterable[Fragment]) -> list[Fragment]:
        """Copy live fragments; returns when the live ones may change. The copies hold until the next call."""
        live = list(fragments)
        tensors = [t for f in live for t in f.tensors.values()]
        places = self._places(tensors)
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor, non_blocking=tensor.is_cuda)  # other devices would not be waited for below
        for device in {t.device for t in tensors if t.is_cuda}:
            torch.cuda.synchronize(device)
        into = iter(places)
        return [
            replace(
                f,
                tensors={kind: next(into) for kind in f.tensors},
                scalars={kind: t.detach().cpu().clone() for kind, t in f.scalars.items()},
            )
            for f in live
        ]

    def _places(self, tensors: list[Tensor]) -> list[Tensor]:
        sizes = [t.numel() for t in tensors]
        if sizes != [place.numel() for place in self._memory]:
            self._memory = []  # the old is given back before the new is taken
            self._memory = _host_memory(sizes, pinned=any(t.is_cuda for t in tensors))
        return self._memory


def _host_memory(sizes: list[int], pinned: bool) -> list[Tensor]:
    """Memory for tensors of so many float32, in blocks of BLOCK_ELEMENTS or one tensor."""
    places: list[Tensor] = []
    for group in pack(dict(enumerate(sizes)), BLOCK_ELEMENTS):
        of_one = [sizes[number] for number in group]
        places += torch.split(torch.empty(sum(of_one), pin_memory=pinned), of_one)
    return places

"""Memory for batches, which is used again: a page of new memory costs more than the tokens that are written to it."""

import weakref

import numpy as np
import torch


class Buffers:
    """Lends int64 tensors and takes each back when nothing refers to it, or to a view of it, any more."""

    def __init__(self, pin: bool = False) -> None:
        self._pin = pin
        self._free: dict[tuple[int, ...], list[np.ndarray]] = {}

    def take(self, *shape: int) -> torch.Tensor:
        """A tensor with anything in it; pinned for copies to a GPU if that was asked for.

        torch keeps pinned memory itself, and lends it again only when the copies from it that were begun are done.
        """
        if self._pin:
            return torch.empty(shape, dtype=torch.int64, pin_memory=True)
        free = self._free.setdefault(shape, [])
        kept = free.pop() if free else np.empty(shape, np.int64)
        lent = kept.view()  # a tensor's memory, however it is cut, holds on to this view and to nothing else of ours
        weakref.finalize(lent, free.append, kept)
        return torch.from_numpy(lent)

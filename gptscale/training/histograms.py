"""Histograms of parameters and gradients, each rank counting what it holds of them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from gptscale.runtime.engine import Engine
from gptscale.runtime.fragments import Fragment
from gptscale.tracking.tracker import Histogram, Histograms
from gptscale.training.step import StepResult

BINS = 64

VALUES_AT_ONCE = 2**24
"""Counting takes some twenty bytes for each value of a piece."""

_FOLDERS = {"weight": "parameters", "gradient": "gradients"}


class HistogramTaker:
    """Looks at what a step's update starts from, every so many steps: the parameters and their clipped gradients."""

    def __init__(self, engine: Engine, every_steps: int | None) -> None:
        self._engine = engine
        self._every_steps = every_steps
        self._found: dict[str, Histogram] = {}

    @contextmanager
    def of(self, step: int) -> Iterator[None]:
        """Around a step, which is looked at if it is its turn. All ranks call this together."""
        if self._every_steps is None or step % self._every_steps:
            yield
            return
        with self._engine.observing(self._see):
            yield

    def take(self, result: StepResult) -> Histograms:
        """What was found in the step, once; nothing of a step that was skipped."""
        found, self._found = self._found, {}
        return found if found and bool(result.grad_norm.isfinite()) else {}

    def _see(self, fragments: list[Fragment]) -> None:
        names = [f"{folder}/{name}" for folder in _FOLDERS.values() for name in self._engine.parameter_names()]
        held = {f"{_FOLDERS[kind]}/{f.name}": t for f in fragments for kind, t in f.tensors.items()}
        ends = self._ends(names, held)
        counts = torch.zeros(len(names), BINS, dtype=torch.int64, device=self._engine.device)
        for row, name in zip(counts, names, strict=True):
            if name in held and name in ends:
                low, high = ends[name]
                row.copy_(counted(held[name], low, high))
        for name, row in zip(names, self._engine.sum_over_ranks(counts).tolist(), strict=True):
            if name in ends:
                self._found[name] = Histogram(*ends[name], row)

    def _ends(self, names: list[str], held: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
        """Where the bins of each tensor begin and end, over all ranks; without those that nobody holds finite."""
        nothing = torch.full((2,), -math.inf, device=self._engine.device)
        mine = [_outermost(held[name]).to(nothing) if name in held else nothing for name in names]
        found = {}
        for name, (negative, high) in zip(names, self._engine.max_over_ranks(torch.stack(mine)).tolist(), strict=True):
            low = -negative
            if math.isfinite(high - low):
                found[name] = (low, high) if low < high else (low - 0.5, high + 0.5)  # as numpy.histogram does
        return found


def counted(values: Tensor, low: float, high: float) -> Tensor:
    """How many of the values lie in each of BINS bins of one width from low to high."""
    device = torch.device("cpu") if values.device.type == "mps" else values.device  # MPS has no doubles
    edges = torch.from_numpy(np.linspace(low, high, BINS + 1)).to(device)
    counts = torch.zeros(BINS, dtype=torch.int64, device=device)
    for piece in torch.split(values, VALUES_AT_ONCE):
        places = torch.bucketize(piece.to(edges), edges, right=True) - 1
        counts += torch.bincount(places.clamp_(max=BINS - 1), minlength=BINS)  # high belongs to the last bin
    return counts


def _outermost(values: Tensor) -> Tensor:
    """The negative of the smallest value and the largest; infinite if a value is no number."""
    low, high = values.aminmax()
    ends = torch.stack([-low, high])
    return ends.where(ends.isfinite(), math.inf)

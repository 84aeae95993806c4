"""What a rank holds of the training state, as ranges of flattened parameters.

Under every engine a rank's share of a parameter is one contiguous range of its row-major
flattening. A checkpoint made of such ranges can be read back under any other engine.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Fragment:
    """A range of one parameter with its optimizer state, as live 1-D views."""

    name: str
    shape: tuple[int, ...]
    start: int
    tensors: dict[str, Tensor]
    """`weight` and the optimizer's per-element state, or `gradient`, each (numel,) in float32."""
    scalars: dict[str, Tensor]
    """The optimizer's per-parameter state, such as Adam's step; not cut into ranges."""

    @property
    def numel(self) -> int:
        """Elements in the range."""
        return self.tensors["weight"].numel()

    def narrow(self, start: int, stop: int) -> "Fragment":
        """The part of this fragment from start to stop, counted from the fragment's own start."""
        cut = {kind: view[start:stop] for kind, view in self.tensors.items()}
        return replace(self, start=self.start + start, tensors=cut)


@dataclass(frozen=True)
class Piece:
    """A range of a parameter, and where it lies in the flat tensors that an optimizer works on."""

    name: str
    shape: tuple[int, ...]
    start: int
    """Its first element in the parameter's row-major flattening."""
    numel: int
    flat: int
    """Which of the flat tensors."""
    offset: int
    """Its first element there."""


def whole_fragments(model: nn.Module, state_of: Callable[[nn.Parameter], Mapping[str, Any]]) -> list[Fragment]:
    """One fragment per parameter with its state, for engines that keep every parameter whole on every rank."""
    named = model.named_parameters()
    return [fragment_of(name, p.shape, 0, p, state_of(p), lambda t: t.detach().view(-1)) for name, p in named]


def fragment_of(
    name: str,
    shape: tuple[int, ...],
    start: int,
    weight: Tensor,
    state: Mapping[str, Tensor],
    view: Callable[[Tensor], Tensor],
) -> Fragment:
    """What a view shows of a weight and of the state that is as large; the rest of the state are scalars."""
    tensors = {kind: view(t) for kind, t in {"weight": weight, **state}.items() if t.shape == weight.shape}
    scalars = {kind: t for kind, t in state.items() if t.shape != weight.shape}
    return Fragment(name, tuple(shape), start, tensors, scalars)


def share(fragments: list[Fragment], rank: int, world: int) -> Iterator[Fragment]:
    """Rank's equal share of state that every rank holds whole, so that each writes 1/world of it."""
    total = sum(f.numel for f in fragments)
    low, high, offset = total * rank // world, total * (rank + 1) // world, 0
    for fragment in fragments:
        start, stop = max(low - offset, 0), min(high - offset, fragment.numel)
        offset += fragment.numel
        if start < stop:
            yield fragment.narrow(start, stop)


def materialize_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer create its state, as a first step does, without moving the weights.

    A step with zero gradients at rate 0 changes no weight; what it counted is overwritten by a load. Tensors take their
    turns, since gradients for all of them would be as large as the model.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.zero_grad()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
            optimizer.step()
            p.grad = None
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate

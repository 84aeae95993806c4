"""Models on the meta device: shapes without weights, so that a rank need not hold all of them to hold its share."""

import torch
from torch import Tensor, nn


class Unfilled:
    """Gives a model's meta parameters memory, module by module; tied ones stay tied. What they hold is undefined."""

    def __init__(self, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self._device, self._dtype = device, dtype
        self._made: dict[Tensor, nn.Parameter] = {}

    def fill(self, module: nn.Module) -> None:
        """Allocate the parameters of a module and those within it; others than meta parameters stay as they are."""
        for part in module.modules():
            for name, p in part.named_parameters(recurse=False):
                if p.is_meta:
                    setattr(part, name, self._allocated(p))

    def replace(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer that was built over meta parameters update those that took their place."""
        for group in optimizer.param_groups:
            group["params"] = [self._made.get(p, p) for p in group["params"]]

    def _allocated(self, p: nn.Parameter) -> nn.Parameter:
        if p not in self._made:
            self._made[p] = nn.Parameter(torch.empty_like(p, device=self._device, dtype=self._dtype))
        return self._made[p]


def is_unfilled(model: nn.Module) -> bool:
    """Whether a model has shapes only."""
    return any(p.is_meta for p in model.parameters())

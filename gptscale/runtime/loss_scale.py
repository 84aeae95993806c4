"""fp16's loss scale, which lifts small gradients over fp16's smallest number."""

from typing import Any

import torch
from torch import Tensor

INITIAL_SCALE = 2.0**16
GROWTH_INTERVAL = 2000


class LossScale:
    """Halved by a step whose gradients overflow, doubled after 2000 steps in a row without one.

    This is the algorithm of torch.amp.GradScaler with its constants. But what overflows is the global gradient norm,
    so it is the same under every engine and on every rank, and ZeRO's flat gradients need no optimizer to be found.
    """

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.full((), INITIAL_SCALE, device=device)
        self._steps = torch.zeros((), dtype=torch.int32, device=device)

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide gradients of a scaled loss by the scale."""
        torch._foreach_div_(gradients, self.scale)

    def update(self, grad_norm: Tensor) -> None:
        """Learn from a step, which the optimizer has left out if its gradient norm is not finite."""
        overflow = (~grad_norm.isfinite()).float()
        torch._amp_update_scale_(self.scale, self._steps, overflow, 2.0, 0.5, GROWTH_INTERVAL)

    def state(self) -> dict[str, Any]:
        """For a checkpoint's ledger."""
        return {"scale": float(self.scale), "steps": int(self._steps)}

    def load(self, state: dict[str, Any]) -> None:
        """Continue with a saved state."""
        self.scale.fill_(state["scale"])
        self._steps.fill_(state["steps"])

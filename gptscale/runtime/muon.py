"""Muon on processors that have no bf16: torch.optim.Muon orthogonalizes in it, whatever the weights are."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

from gptscale.runtime.device import computes_bf16


def muon_dtype(device: torch.device) -> torch.dtype:
    """What matrices are orthogonalized in: bf16 as torch does it, fp32 where a product in bf16 is far slower."""
    return torch.bfloat16 if computes_bf16(device) else torch.float32


def orthogonalized(matrix: Tensor, group: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """U V^T of a matrix's U S V^T, about: Muon's Newton-Schulz iteration (Jordan et al. 2024), in one of the two."""
    coefficients, steps, eps = group["ns_coefficients"], group["ns_steps"], group["eps"]
    if dtype == torch.bfloat16:
        return _zeropower_via_newtonschulz(matrix, coefficients, steps, eps)
    a, b, c = coefficients
    tall = matrix.size(0) > matrix.size(1)
    wide = (matrix.T if tall else matrix).float()
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if tall else wide


class Fp32Muon(torch.optim.Muon):
    """torch's Muon with its orthogonalization in fp32; groups and state are the same."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update the matrices that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, matrix.grad, group)

    def _update(self, matrix: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        direction = orthogonalized(momentum_step(self.state[matrix], gradient, group), group, torch.float32)
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(direction, alpha=-_adjust_lr(group["lr"], group["adjust_lr_fn"], matrix.shape))


def momentum_step(state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> Tensor:
    """Move a tensor's momentum on; gives what is to be orthogonalized."""
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(gradient)
    momentum: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
    return gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum

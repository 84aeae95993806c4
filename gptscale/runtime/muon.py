"""Muon (Jordan et al. 2024) on the matrices of the blocks: momentum, orthogonalized, in place of AdamW's division.

Queries, keys and values lie over each other in one matrix, and each is orthogonalized by itself, as Jordan advises.
torch.optim.Muon does not know of that, and computes in bf16 only, which some processors have not.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

from gptscale.runtime.device import computes_bf16


class Muon(torch.optim.Muon):
    """torch's Muon by the functions of this module; groups and state are the same."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update the matrices that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, matrix.grad, group)

    def _update(self, matrix: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        direction = orthogonalized(momentum_step(self.state[matrix], gradient, group), group, muon_dtype(matrix.device))
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(direction, alpha=-adjusted_lr(group, matrix.shape))


def muon_dtype(device: torch.device) -> torch.dtype:
    """What matrices are orthogonalized in: bf16 as torch does it, fp32 where a product in bf16 is far slower."""
    return torch.bfloat16 if computes_bf16(device) else torch.float32


def momentum_step(state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> Tensor:
    """Move a tensor's momentum on; gives what is to be orthogonalized."""
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(gradient)
    momentum: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
    return gradient.lerp(momentum, group["momentum"])  # Nesterov's


def orthogonalized(matrix: Tensor, group: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """U V^T of a matrix's U S V^T, about, and that of each of those that lie over each other in it."""
    parts = matrix.chunk(_stacked(matrix.shape))
    directions = [_newton_schulz(part, group, dtype) for part in parts]
    return directions[0] if len(directions) == 1 else torch.cat(directions)


def adjusted_lr(group: dict[str, Any], shape: tuple[int, ...]) -> float:
    """The rate by which to go along the direction of a matrix of some shape."""
    rows, columns = shape
    return _adjust_lr(group["lr"], group["adjust_lr_fn"], torch.Size((rows // _stacked(shape), columns)))


def _stacked(shape: tuple[int, ...]) -> int:
    """How many matrices lie over each other. Three times as high as wide are queries, keys and values alone."""
    rows, columns = shape
    return 3 if rows == 3 * columns else 1


def _newton_schulz(matrix: Tensor, group: dict[str, Any], dtype: torch.dtype) -> Tensor:
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

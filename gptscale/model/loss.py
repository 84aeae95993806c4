"""The loss of the output head, without the logits of the whole batch. Axes: N tokens, C width, V padded vocabulary."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptscale.model.size import LOGITS_PER_CHUNK

IGNORE = -100
"""A target that does not count, as in torch's own cross-entropy."""


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Sum of the cross-entropies in nats of `hidden @ weight.T` against targets, as a float32 scalar.

    hidden (N, C), weight (V, C), targets (N,). Rows of weight from vocab_size on are padding, and
    targets of -100 do not count. Equal to cross_entropy(reduction="sum") on float32 logits.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    return _ChunkedLoss.apply(hidden, weight, targets, vocab_size)  # type: ignore[no-any-return, no-untyped-call]


@torch.no_grad()
def cross_entropy_by_token(hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """The cross-entropies in nats of `hidden @ weight.T` against targets, float32 (N,); 0 for targets of -100.

    Shapes as in `summed_cross_entropy`; for evaluation only, without gradients.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    table = weight.to(hidden.dtype)
    rows = max(1, LOGITS_PER_CHUNK // weight.shape[0])
    losses = [
        F.cross_entropy(F.linear(x, table).float()[:, :vocab_size], wanted, ignore_index=IGNORE, reduction="none")
        for x, wanted in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    ]
    return torch.cat(losses)


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradients with the loss, chunk by chunk, so nothing is kept but them.

    A chunk's logits are needed once for the loss and once for its gradient. Taking both at the same
    time costs no second matrix product, which recomputing in the backward pass would.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
        table = weight.to(hidden.dtype)
        learning = any(ctx.needs_input_grad)
        grad_hidden = torch.empty_like(hidden) if learning else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if learning else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        rows = max(1, LOGITS_PER_CHUNK // weight.shape[0])
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            logits = F.linear(hidden[part], table).float()
            logits[:, vocab_size:] = -torch.inf
            counted = targets[part] != IGNORE
            index = targets[part].clamp(min=0).unsqueeze(1)
            log_sum = logits.logsumexp(1)
            total += ((log_sum - logits.gather(1, index).squeeze(1)) * counted).sum()
            if grad_hidden is not None and grad_weight is not None:
                slope = logits.sub_(log_sum.unsqueeze(1)).exp_()  # d loss / d logits = softmax - one-hot
                slope.scatter_add_(1, index, -torch.ones_like(index, dtype=slope.dtype))
                slope = slope.mul_(counted.unsqueeze(1)).to(hidden.dtype)
                grad_hidden[part] = slope @ table
                grad_weight += slope.T @ hidden[part]
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0], grad_weight * grads[0], None, None

"""The loss of the output head, without the logits of the whole batch. Axes: N tokens, C width, V padded vocabulary."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, library

from gptscale.model.size import rows_per_chunk

IGNORE = -100
"""A target that does not count, as in torch's own cross-entropy."""


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Sum of the cross-entropies in nats of `hidden @ weight.T` against targets, as a float32 scalar.

    hidden (N, C), weight (V, C), targets (N,). Rows of weight from vocab_size on are padding, and
    targets of -100 do not count. Equal to cross_entropy(reduction="sum") on float32 logits.
    """
    if not torch.is_grad_enabled():  # which a Function cannot see: it would compute gradients for nobody
        return cross_entropy_by_token(hidden, weight, targets, vocab_size).sum()
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
    rows = rows_per_chunk(len(hidden), len(weight))
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
        grad_weight: Tensor | None = None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        rows = rows_per_chunk(len(hidden), len(weight))
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            loss, slope = _loss_and_slope(F.linear(hidden[part], table), targets[part], vocab_size)
            total = total + loss  # in place, torch.compile would give no gradient at all under torch 2.11
            if grad_hidden is not None:
                grad_hidden[part] = slope @ table
                grad_weight = _plus(grad_weight, slope.T @ hidden[part])
            del slope  # else it would stay beside the next chunk's logits
        if grad_hidden is not None and grad_weight is not None:
            if grad_weight.itemsize > weight.itemsize:
                grad_weight = grad_weight.to(weight.dtype)
            ctx.save_for_backward(grad_hidden, grad_weight)
            ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # In float32, since CUDA would round the factor to 16 bits first. The weights' gradient stays in 16 bits until
        # here where the only chunk left it in them.
        scaled = (grad_hidden.float() * grads[0]).to(grad_hidden.dtype)
        return scaled, grad_weight.to(ctx.weight_dtype, copy=True).mul_(grads[0]), None, None


def _plus(total: Tensor | None, share: Tensor) -> Tensor:
    """The sum in float32, or the only share as it is. A function, so that no name keeps the share."""
    return share if total is None else total.float().add_(share)


def _loss_and_slope(logits: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """The summed loss of some rows of logits (N, V), and its gradient by them, softmax - one-hot, in their dtype.

    Passes over the logits are what counts here. What torch.compile makes of this reads them three times and writes
    the gradient over them, with nothing to compare in them: where it is not the softmax is set afterwards. Eager works
    in place too.
    """
    log_sum = logits[:, :vocab_size].float().logsumexp(1, keepdim=True)
    counted = (targets != IGNORE).unsqueeze(1)
    index = targets.clamp(min=0).unsqueeze(1)
    log_p = logits.gather(1, index).float() - log_sum
    slope = logits.float().sub_(log_sum).exp_().mul_(counted).to(logits.dtype)
    _set_targets_and_padding(slope, index, ((log_p.exp() - 1) * counted).to(slope.dtype), vocab_size)
    return -(log_p * counted).sum(), slope


@library.custom_op("gptscale::set_targets_and_padding", mutates_args={"slope"})
def _set_targets_and_padding(slope: Tensor, index: Tensor, values: Tensor, vocab_size: int) -> None:
    """Set one element in each row of slope (N, V), at index (N, 1), and those of padding to 0, where exp may overflow.

    An operator, because torch.compile would do it in a copy.
    """
    rows = torch.arange(len(slope), device=slope.device).unsqueeze(1)
    slope.index_put_((rows, index), values)  # scatter_ takes more than a hundred times as long on a CPU
    slope[:, vocab_size:] = 0

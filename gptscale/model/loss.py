"""The loss of the output head, without the logits of the whole batch. Axes: N tokens, C width, V padded vocabulary."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, library

from gptscale.model.compiled_alone import compiled_alone
from gptscale.model.size import rows_per_chunk

IGNORE = -100
"""A target that does not count, as in torch's own cross-entropy."""

_Slope = tuple[Tensor, Tensor]


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Sum of the cross-entropies in nats of `hidden @ weight.T` against targets, as a float32 scalar.

    hidden (N, C), weight (V, C), targets (N,). Rows of weight from vocab_size on are padding, and
    targets of -100 do not count. Equal to cross_entropy(reduction="sum") on float32 logits.
    """
    if not torch.is_grad_enabled():
        return cross_entropy_by_token(hidden, weight, targets, vocab_size).sum()
    return _ChunkedLoss.apply(_autocast(hidden), weight, targets, vocab_size)  # type: ignore[no-any-return, no-untyped-call]


@torch.no_grad()
def cross_entropy_by_token(hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """The cross-entropies in nats of `hidden @ weight.T` against targets, float32 (N,); 0 for targets of -100.

    Shapes as in `summed_cross_entropy`; for evaluation only, without gradients.
    """
    hidden = _autocast(hidden)
    head = hidden, weight.to(hidden.dtype), targets, vocab_size, _rows(hidden, weight)
    return _compiled_losses(*head) if torch.compiler.is_compiling() else _losses(*head, _losses_of)


def _autocast(hidden: Tensor) -> Tensor:
    device = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden


def _rows(hidden: Tensor, weight: Tensor) -> int:
    return rows_per_chunk(len(hidden), len(weight), fp16=hidden.dtype == torch.float16)


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradients with the loss, chunk by chunk, so nothing is kept but them.

    A chunk's logits are needed once for the loss and once for its gradient. Taking both at the same
    time costs no second matrix product, which recomputing in the backward pass would.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
        head = hidden, weight.to(hidden.dtype), targets, vocab_size, _rows(hidden, weight)
        compiling = torch.compiler.is_compiling()
        loss, grad_hidden, grad_weight = _compiled_grads(*head) if compiling else _grads(*head, _slope_over_logits)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # In float32, since CUDA would round the factor to 16 bits first. The weights' gradient stays in 16 bits until
        # here where the only chunk left it in them.
        scaled = (grad_hidden.float() * grads[0]).to(grad_hidden.dtype)
        return scaled, grad_weight.to(ctx.weight_dtype, copy=True).mul_(grads[0]), None, None


def _losses(
    hidden: Tensor, table: Tensor, targets: Tensor, vocab_size: int, rows: int, of_chunk: Callable[..., Tensor]
) -> Tensor:
    chunks = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    return torch.cat([of_chunk(F.linear(x, table), wanted, vocab_size) for x, wanted in chunks])


def _losses_of(logits: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    return F.cross_entropy(logits.float()[:, :vocab_size], targets, ignore_index=IGNORE, reduction="none")


def _grads(
    hidden: Tensor, table: Tensor, targets: Tensor, vocab_size: int, rows: int, of_chunk: Callable[..., _Slope]
) -> tuple[Tensor, Tensor, Tensor]:
    """The summed loss in float32, and its gradients by hidden and table, which have one dtype.

    That by the table is in float32 where it is a sum over chunks.
    """
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    several = len(hidden) > rows
    # Made before the logits, which would leave a hole below them.
    grad_hidden = torch.empty_like(hidden)
    grad_table = torch.zeros_like(table, dtype=torch.float32) if several else torch.empty_like(table)
    parts = (torch.split(each, rows) for each in (hidden, targets, grad_hidden))
    for x, wanted, grad_x in zip(*parts, strict=True):
        slope = F.linear(x, table)  # logits, until the next line
        index = wanted.clamp(min=0).unsqueeze(1)
        loss, at_target = of_chunk(slope, slope.gather(1, index), wanted, vocab_size)
        _set_targets_and_padding(slope, index, at_target, vocab_size)
        total += loss
        torch.mm(slope, table, out=grad_x)
        if several:
            grad_table += slope.T @ x
        else:
            torch.mm(slope.T, x, out=grad_table)
        del slope  # else it would stay beside the next chunk's logits
    return total, grad_hidden, grad_table


def _slope_over_logits(logits: Tensor, at_target: Tensor, targets: Tensor, vocab_size: int) -> _Slope:
    """The summed loss of some rows of logits (N, V); over them goes its gradient by them, softmax - one-hot.

    Passes over the logits are what counts here. What torch.compile makes of this reads them three times and writes
    the gradient over them, with nothing to compare in them: where it is not the softmax is given with the loss, (N, 1).
    The logits at_target (N, 1) are read before: torch 2.10 would compile a reading of them after the writing.
    """
    log_sum = logits[:, :vocab_size].float().logsumexp(1, keepdim=True)
    counted = (targets != IGNORE).unsqueeze(1)
    log_p = at_target - log_sum
    logits.copy_(logits.float().sub_(log_sum).exp_().mul_(counted))
    return -(log_p * counted).sum(), ((log_p.exp() - 1) * counted).to(logits.dtype)


def _set_targets_and_padding(slope: Tensor, index: Tensor, values: Tensor, vocab_size: int) -> None:
    """Set one element in each row of slope (N, V), at index (N, 1), and padding to 0, where exp may overflow."""
    rows = torch.arange(len(slope), device=slope.device).unsqueeze(1)
    slope.index_put_((rows, index), values)  # scatter_ takes more than a hundred times as long on a CPU
    slope[:, vocab_size:] = 0


# Operators, for in one graph torch.compile would compute the logits of many chunks before it is done with the first
# (torch 2.14 on CUDA). Chunks are compiled one by one.
@library.custom_op("gptscale::head_losses", mutates_args=())
def _compiled_losses(hidden: Tensor, table: Tensor, targets: Tensor, vocab_size: int, rows: int) -> Tensor:
    return _losses(hidden, table, targets, vocab_size, rows, compiled_alone(_losses_of))


@library.custom_op("gptscale::head_grads", mutates_args=())
def _compiled_grads(
    hidden: Tensor, table: Tensor, targets: Tensor, vocab_size: int, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _grads(hidden, table, targets, vocab_size, rows, compiled_alone(_slope_over_logits))


# Of an operator, torch's caches on disk know the name and the arguments alone: with other shapes or dtypes than these
# it needs another name.
@_compiled_losses.register_fake
def _(hidden: Tensor, table: Tensor, targets: Tensor, vocab_size: int, rows: int) -> Tensor:
    return hidden.new_empty(len(hidden), dtype=torch.float32)


@_compiled_grads.register_fake
def _(hidden: Tensor, table: Tensor, targets: Tensor, vocab_size: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    summed = torch.float32 if len(hidden) > rows else table.dtype
    loss = hidden.new_empty((), dtype=torch.float32)
    return loss, torch.empty_like(hidden), torch.empty_like(table, dtype=summed)

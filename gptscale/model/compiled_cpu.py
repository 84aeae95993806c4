"""What torch.compile does faster on a CPU than torch's own kernels, written so that it can.

Axes: B sequences, T positions, H heads, D head width.
"""

import math
from functools import reduce
from typing import Any

import torch
from torch import Tensor, library

from gptscale.model.compiled_alone import compiled_alone

BLOCKS = 4
"""Most blocks of positions: each pair of them is compiled for itself, which takes seconds."""
SMALLEST_BLOCK = 128
"""Positions in a block, so that its products are wide."""


def is_compiling_for_cpu(x: Tensor) -> bool:
    """Whether torch.compile is tracing this call, and x is on a CPU."""
    return torch.compiler.is_compiling() and x.device.type == "cpu"


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, x / 2 * (1 + tanh(u)), which is x * sigmoid(2 u), since 1 + tanh(u) = 2 sigmoid(2 u).

    A vector unit is more than twice as fast with exponentials as with hyperbolic tangents.
    """
    f = x.float()
    return (f * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (f + 0.044715 * f**3))).to(x.dtype)


def causal_attention(qkv: Tensor) -> Tensor:
    """Attention in which a position sees itself and the past; maps (B, T, 3, H, D) to (B, T, H, D).

    For bf16, in which it is faster than torch's kernel; in float32 it is not (`benchmarks/attention.py`). A block of
    queries is multiplied with its own keys and with each block before it. Scores are rounded to bf16 before the softmax
    in float32.
    """
    return _Attention.apply(qkv)  # type: ignore[no-any-return, no-untyped-call]


class _Attention(torch.autograd.Function):
    """Not an autograd formula of the operator, which no key of torch's caches would know of."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor) -> Tensor:
        seen, log_sums = _attention(qkv)
        ctx.save_for_backward(qkv, seen, log_sums)
        return seen  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _attention_backward(grads[0], *ctx.saved_tensors)  # type: ignore[no-any-return]


@library.custom_op("gptscale::causal_attention", mutates_args=())
def _attention(qkv: Tensor) -> tuple[Tensor, Tensor]:
    return compiled_alone(_forward)(qkv)  # type: ignore[no-any-return]


@library.custom_op("gptscale::causal_attention_backward", mutates_args=())
def _attention_backward(grad: Tensor, qkv: Tensor, seen: Tensor, log_sums: Tensor) -> Tensor:
    return compiled_alone(_backward)(grad, qkv, seen, log_sums)  # type: ignore[no-any-return]


def _forward(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Give what the queries see, and the log-sum of each one's exponentials, float32 (B, H, T, 1)."""
    queries, keys, values = (_blocks(x) for x in qkv.unbind(2))
    seen, log_sums = [], []
    for i, q in enumerate(queries):
        scores = [_scores(q, k) for k in keys[: i + 1]]
        scores[i] = scores[i].masked_fill(_later(q), float("-inf"))
        largest = reduce(torch.maximum, [s.amax(2, keepdim=True) for s in scores])
        weights = [(s - largest).exp() for s in scores]
        total = _sum([w.sum(2, keepdim=True) for w in weights])
        log_sums.append(largest + total.log())
        seen.append(_sum([w.to(q.dtype) @ v for w, v in zip(weights, values, strict=False)]) / total)
    return _joined(seen, qkv).contiguous(), torch.cat(log_sums, 1).view(len(qkv), -1, qkv.shape[1], 1)


def _backward(grad: Tensor, qkv: Tensor, seen: Tensor, log_sums: Tensor) -> Tensor:
    """Compute the probabilities again, keys by queries, so that one product of the five has a transposed left side."""
    queries, keys, values, grads, seen_blocks = (_blocks(x) for x in (*qkv.unbind(2), grad, seen))
    scale = qkv.shape[4] ** -0.5
    shares: tuple[list[list[Tensor]], ...] = tuple([[] for _ in queries] for _ in range(3))
    grad_q, grad_k, grad_v = shares
    log_sum_blocks = torch.split(log_sums.flatten(0, 1).mT, _block_size(qkv), 2)
    for i, (q, g, y, log_sum) in enumerate(zip(queries, grads, seen_blocks, log_sum_blocks, strict=True)):
        mean = (g.float() * y.float()).sum(2).unsqueeze(1)  # of what p gets, weighted by p
        for j, (k, v) in enumerate(zip(keys[: i + 1], values, strict=False)):
            scores = _scores(k, q)
            if i == j:
                scores = scores.masked_fill(_later(q).mT, float("-inf"))
            p = (scores - log_sum).exp()
            slope = (p * ((v @ g.mT).float() - mean) * scale).to(q.dtype)
            grad_q[i].append(slope.mT @ k)
            grad_k[j].append(slope @ q)
            grad_v[j].append(p.to(q.dtype) @ g)
    return torch.stack([_joined([_sum(block) for block in blocks], qkv) for blocks in shares], 2)


# Of an operator, torch's caches on disk know the name alone: with other shapes than these it needs another name.
@_attention.register_fake
def _(qkv: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, _, heads, width = qkv.shape
    return qkv.new_empty(batch, length, heads, width), qkv.new_empty(batch, heads, length, 1, dtype=torch.float32)


@_attention_backward.register_fake
def _(grad: Tensor, qkv: Tensor, seen: Tensor, log_sums: Tensor) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _block_size(qkv: Tensor) -> int:
    return max(SMALLEST_BLOCK, -(-qkv.shape[1] // BLOCKS))


def _blocks(x: Tensor) -> list[Tensor]:
    """Split (B, T, H, D) into (B H, n, D), each in one piece, as oneDNN wants it."""
    return [part.transpose(1, 2).flatten(0, 1) for part in torch.split(x, _block_size(x), 1)]


def _joined(blocks: list[Tensor], qkv: Tensor) -> Tensor:
    """The (B, T, H, D) of blocks, in the dtype of qkv."""
    whole = torch.cat([x.to(qkv.dtype) for x in blocks], 1)
    return whole.view(len(qkv), -1, *whole.shape[1:]).transpose(1, 2)


def _sum(tensors: list[Tensor]) -> Tensor:
    return reduce(torch.add, [t.float() for t in tensors])


def _scores(rows: Tensor, columns: Tensor) -> Tensor:
    """Scaled products of queries and keys, or of keys and queries, float32."""
    return (rows @ columns.mT).float() * rows.shape[2] ** -0.5  # type: ignore[no-any-return]


def _later(q: Tensor) -> Tensor:
    """Which keys of a query's own block are later, (queries, keys); int64 would fill twice the vectors."""
    position = torch.arange(q.shape[1], dtype=torch.int32, device=q.device)
    return position > position.unsqueeze(1)

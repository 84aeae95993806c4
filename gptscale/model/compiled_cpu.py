"""What torch.compile does faster on a CPU than torch's own kernels, written so that it can.

Axes: B sequences, T positions, H heads, D head width.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, library

GROUPS = 4
"""Most groups of queries: each is compiled for itself, which takes seconds."""
SMALLEST_GROUP = 128
"""Queries in a group, so that their products are wide."""


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

    For bf16, in which it is faster than torch's kernel; in float32 it is not (`benchmarks/attention.py`). A group of
    queries is multiplied with all keys that one of them sees. Scores are rounded to bf16 before the softmax in float32.
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
    return _compiled(_forward)(qkv)  # type: ignore[no-any-return]


@library.custom_op("gptscale::causal_attention_backward", mutates_args=())
def _attention_backward(grad: Tensor, qkv: Tensor, seen: Tensor, log_sums: Tensor) -> Tensor:
    return _compiled(_backward)(grad, qkv, seen, log_sums)  # type: ignore[no-any-return]


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on its own, so that it is done once for all layers; not before it is needed, since it takes a second."""
    return torch.compile(function, dynamic=False)


def _forward(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Give what the queries see, and the log-sum of each one's exponentials, float32 (B, H, T, 1)."""
    q, k, v = qkv.transpose(1, 3).unbind(2)
    seen, log_sums = [], []
    for start, stop in _groups(q.shape[2]):
        scores = _scores(q[:, :, start:stop], k[:, :, :stop], start)
        largest = scores.amax(-1, keepdim=True)
        p = (scores - largest).exp()
        total = p.sum(-1, keepdim=True)
        log_sums.append(largest + total.log())
        seen.append(((p.to(v.dtype) @ v[:, :, :stop]).float() / total).to(v.dtype))
    return torch.cat(seen, 2).transpose(1, 2).contiguous(), torch.cat(log_sums, 2)


def _backward(grad: Tensor, qkv: Tensor, seen: Tensor, log_sums: Tensor) -> Tensor:
    """Compute the probabilities again, and from them the gradient, for one group of keys after another."""
    q, k, v, grad, seen = (t.transpose(1, 2) for t in (*qkv.unbind(2), grad, seen))
    scale = q.shape[3] ** -0.5
    mean = (grad.float() * seen.float()).sum(-1, keepdim=True)  # of what p gets, weighted by p
    grad_q, grad_k, grad_v = torch.zeros_like(q, dtype=torch.float32), [], []
    for start, stop in _groups(q.shape[2]):
        rows, cols = slice(start, None), slice(start, stop)
        p = (_scores(q[:, :, rows], k[:, :, cols], 0) - log_sums[:, :, rows]).exp()
        slope = (p * ((grad[:, :, rows] @ v[:, :, cols].mT).float() - mean[:, :, rows]) * scale).to(q.dtype)
        grad_q[:, :, rows] += slope @ k[:, :, cols]
        grad_k.append(slope.mT @ q[:, :, rows])
        grad_v.append(p.to(v.dtype).mT @ grad[:, :, rows])
    grads = (grad_q.to(q.dtype), torch.cat(grad_k, 2), torch.cat(grad_v, 2))
    return torch.stack([g.transpose(1, 2) for g in grads], 2)


@_attention.register_fake
def _(qkv: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, _, heads, width = qkv.shape
    return qkv.new_empty(batch, length, heads, width), qkv.new_empty(batch, heads, length, 1, dtype=torch.float32)


@_attention_backward.register_fake
def _(grad: Tensor, qkv: Tensor, seen: Tensor, log_sums: Tensor) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _groups(length: int) -> Iterator[tuple[int, int]]:
    """Where groups of positions begin and end."""
    size = max(SMALLEST_GROUP, -(-length // GROUPS))
    return pairwise([*range(0, length, size), length])


def _scores(q: Tensor, k: Tensor, ahead: int) -> Tensor:
    """Scaled products, float32, -inf where the key is later; the first query is so far ahead of the first key."""
    later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(ahead + 1)
    return ((q @ k.mT).float() * q.shape[3] ** -0.5).masked_fill(later, float("-inf"))  # type: ignore[no-any-return]

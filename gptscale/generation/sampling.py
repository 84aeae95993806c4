"""The choice of the next token. Axes: B rows, V vocabulary."""

import torch
from torch import Tensor


def choose(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token id for each row of logits (B, V); gives (B,).

    Temperature 0 takes the likeliest. top_k, then top_p, limit what can be drawn.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # the largest is 0, however small the divisor
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the k largest logits of each row to minus infinity."""
    smallest_kept = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < smallest_kept, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches p (Holtzman et al. 2020)."""
    ordered, index = logits.sort(descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # what the likelier ones reach without this one
    left_out = before >= p
    left_out[..., 0] = False
    ordered = ordered.masked_fill(left_out, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, index, ordered)

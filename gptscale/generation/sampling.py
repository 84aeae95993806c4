"""The choice of the next token. Axes: B rows, V vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from gptscale.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """Which tokens can be drawn, and how likely."""

    temperature: float = 1.0
    """0 always takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens can be drawn."""
    top_p: float | None = None
    """Only the likeliest tokens that together reach this probability can be drawn (Holtzman et al. 2020)."""
    min_p: float | None = None
    """Only tokens at least this times as likely as the likeliest can be drawn (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that a row has already, multiplies negative ones (Keskar et al. 2019)."""

    def __post_init__(self) -> None:
        """Raise ConfigError for what nothing can be drawn with."""
        limits = {
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k is None or self.top_k >= 1, "1 or more, or None for all tokens"),
            "top_p": (self.top_p is None or 0 <= self.top_p <= 1, "from 0 to 1, or None for all tokens"),
            "min_p": (self.min_p is None or 0 <= self.min_p <= 1, "from 0 to 1, or None for all tokens"),
            "repetition_penalty": (self.repetition_penalty > 0, "more than 0"),
        }
        for name, (holds, wanted) in limits.items():
            if not holds:
                raise ConfigError(f"{name}={getattr(self, name)} is no way to draw tokens; give {wanted}")


def filtered(logits: Tensor, rows: Sequence[Sequence[int]], sampling: Sampling) -> Tensor:
    """The logits (B, V) that tokens are drawn from; minus infinity for what cannot be drawn.

    rows are the token ids before, which the repetition penalty looks at. At temperature 0 nothing is cut off.
    """
    logits = penalized(logits, rows, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits
    temperature = max(sampling.temperature, torch.finfo(logits.dtype).tiny)  # smaller ones would be 0 there
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # the largest is 0, however small it is
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def penalized(logits: Tensor, rows: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Make the tokens that stand in a row already less likely in it."""
    if penalty == 1:
        return logits
    logits = logits.clone()
    for row, scores in zip(rows, logits, strict=True):
        seen = torch.tensor(sorted(set(row)), device=logits.device)
        scores[seen] = torch.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    return logits


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the k largest logits of each row to minus infinity."""
    smallest_kept = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < smallest_kept, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches p."""
    ordered, index = logits.sort(descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # what the likelier ones reach without this one
    left_out = before >= p
    left_out[..., 0] = False
    ordered = ordered.masked_fill(left_out, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, index, ordered)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens that are at least p times as likely as the likeliest."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -torch.inf)


def draw(logits: Tensor, uniforms: Sequence[float]) -> list[int]:
    """The token of each row at which the summed probability passes the row's number in [0, 1).

    On the CPU in float64, so that a number means the same token on every device. Logits that are no numbers give the
    last token.
    """
    summed = logits.cpu().double().softmax(-1).cumsum(-1)
    whole = summed[:, -1:].contiguous()
    wanted = torch.tensor(uniforms, dtype=torch.float64)[:, None] * whole
    passed = torch.searchsorted(summed, wanted, right=True)
    last = torch.searchsorted(summed, whole)  # rounding may put a number at the very end
    return torch.minimum(passed, last).clamp(max=logits.shape[-1] - 1).squeeze(-1).tolist()


def uniform_at(seed: int, sequence: int, position: int) -> float:
    """A number in [0, 1) for one token: a function of the seed, the sequence's number and the token's, nothing else."""
    digest = blake2b(f"{seed}/{sequence}/{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53

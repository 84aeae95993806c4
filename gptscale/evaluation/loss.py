"""Cross-entropy over windows, weighted by token."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gptscale.data.loader import MicroBatch
from gptscale.model.loss import IGNORE

FIXED_POINT = 2.0**24
"""Nats are summed as whole numbers of this fraction: such sums do not depend on their order, nor on who adds."""


@dataclass(frozen=True)
class Evaluation:
    """A loss over a set of windows."""

    nats: float
    """Summed cross-entropy."""
    tokens: int
    bytes: int
    """UTF-8 bytes that the predicted tokens stand for."""
    by_position: tuple[float, ...] = ()
    """Mean cross-entropy of the first, second, ... prediction of a window; nan where none counted."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats per token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that is beyond float's range."""
        return math.exp(self.loss) if not self.loss >= 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits needed per byte of text: the same scale for every tokenizer."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def figures(self, place: str = "") -> dict[str, float]:
        """What a record says of it; place is put before each name."""
        return {f"{place}{name}": getattr(self, name) for name in ("loss", "perplexity", "bits_per_byte")}


def mixed(parts: Sequence[Evaluation], shares: Sequence[int]) -> Evaluation:
    """The loss over several sets of windows in which each counts by its share, however many windows it has."""
    if len(parts) == 1:
        return parts[0]
    tokens = sum(part.tokens for part in parts)
    each = [tokens * share / sum(shares) for share in shares]
    nats = math.fsum(its * part.loss for its, part in zip(each, parts, strict=True))
    text_bytes = math.fsum(its * part.bytes / part.tokens for its, part in zip(each, parts, strict=True))
    positions = zip(*(part.by_position for part in parts), strict=True)
    means = (math.fsum(share * loss for share, loss in zip(shares, at, strict=True)) / sum(shares) for at in positions)
    return Evaluation(nats, tokens, round(text_bytes), tuple(means))


def evaluate_loss(
    losses_of: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[MicroBatch],
    token_bytes: npt.NDArray[np.int64],
    device: torch.device,
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> Evaluation:
    """Evaluate over batches; `total` sums over ranks, and then all ranks call this together.

    losses_of maps inputs and targets (B, T) to the cross-entropy of each token (B, T), float32. If they are the same
    however the batches are spread over ranks, so is the result, to the last bit.
    """
    sums = torch.zeros(0, dtype=torch.int64, device=device)  # by position: nats, tokens; and bytes at the end
    lengths = torch.from_numpy(token_bytes)
    unsound = torch.zeros((), dtype=torch.int64, device=device)
    for batch in batches:
        counted = batch.targets != IGNORE
        losses = losses_of(batch.inputs.to(device), batch.targets.to(device)) * counted.to(device)
        unsound += (~losses.isfinite()).sum()
        nats = (losses * FIXED_POINT).round().nan_to_num().long().sum(0)  # (T,)
        text_bytes = lengths[batch.targets[counted]].sum().view(1)
        found = torch.cat([nats, counted.sum(0).to(device), text_bytes.to(device)])
        sums = sums + found if len(sums) else found
    *summed, bad = total(torch.cat([sums, unsound.view(1)])).tolist()
    return _evaluation(summed, sound=not bad)


def _evaluation(sums: list[int], sound: bool) -> Evaluation:
    """Sums by position as an evaluation; one loss that is not finite leaves no number to report."""
    length = len(sums) // 2
    unit = FIXED_POINT if sound else math.nan
    nats, tokens = sums[:length], sums[length : 2 * length]
    means = tuple(n / unit / t if t else math.nan for n, t in zip(nats, tokens, strict=True))
    return Evaluation(sum(nats) / unit, sum(tokens), sums[-1] if sums else 0, means)

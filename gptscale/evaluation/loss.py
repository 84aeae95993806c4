"""Cross-entropy over fixed windows, weighted by token."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gptscale.data.loader import MicroBatch
from gptscale.model.loss import IGNORE


@dataclass(frozen=True)
class Evaluation:
    """A loss over a set of windows."""

    nats: float
    """Summed cross-entropy."""
    tokens: int
    bytes: int
    """UTF-8 bytes that the predicted tokens stand for."""

    def __add__(self, other: "Evaluation") -> "Evaluation":
        """The loss over both sets of windows."""
        return Evaluation(self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that is beyond float's range."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits needed per byte of text: the same scale for every tokenizer."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


def evaluate_loss(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[MicroBatch],
    token_bytes: npt.NDArray[np.int64],
    device: torch.device,
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> Evaluation:
    """Evaluate over batches; `total` sums over ranks, and then all ranks call this together.

    loss_of maps inputs and targets (B, T) to their summed cross-entropy, a scalar. Sums are kept
    in float64, so that the result is the same however the batches are spread over ranks.
    """
    wide = torch.float32 if device.type == "mps" else torch.float64
    nats = torch.zeros((), dtype=wide, device=device)
    counts = torch.zeros(2, dtype=torch.int64)
    lengths = torch.from_numpy(token_bytes)
    for batch in batches:
        counted = batch.targets[batch.targets != IGNORE]
        counts += torch.stack([torch.tensor(counted.numel()), lengths[counted].sum()])
        nats += loss_of(batch.inputs.to(device), batch.targets.to(device))
    tokens, text_bytes = total(counts.to(device)).tolist()
    return Evaluation(float(total(nats)), tokens, text_bytes)

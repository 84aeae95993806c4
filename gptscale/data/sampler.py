"""Which tokens a position of a run begins at: of one corpus, or of all that a run mixes.

Position p counts the samples handed out in a whole run. Of one corpus it lies in epoch p // n of n samples, and
`order` says which sample it is, so a step's samples follow from its number: seeking is arithmetic.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gptscale.data.mixture import Mixture
from gptscale.data.order import block_order, order

Ints = npt.NDArray[np.int64]


def count_samples(tokens: int, context_length: int, stride: int) -> int:
    """Windows of context_length + 1 tokens whose starts lie stride apart."""
    return max(0, (tokens - 1 - context_length) // stride + 1)


@dataclass(frozen=True)
class Sampler:
    """Which tokens a position of the run begins at."""

    samples: int
    stride: int
    seed: int
    block: int | None = None
    """Samples in a block that is shuffled as one; null shuffles all."""

    def starts(self, positions: Ints) -> Ints:
        """The first token of the sample at each position, (n,)."""
        return self.locate(positions)[1] * self.stride

    def locate(self, positions: Ints) -> tuple[Ints, Ints]:
        """The epoch and the sample at each position, (n,) each."""
        epochs, within = np.divmod(positions, self.samples)
        index = np.empty_like(within)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            if self.block is None:
                index[mine] = order(self.seed, int(epoch), within[mine], self.samples)
            else:
                index[mine] = block_order(self.seed, int(epoch), within[mine], self.samples, self.block)
        return epochs, index


@dataclass(frozen=True)
class MixedSampler:
    """Which tokens of the joined stream a position of the run begins at; each corpus keeps its own order and epochs."""

    names: tuple[str, ...]
    mixture: Mixture
    samplers: tuple[Sampler, ...]
    first_tokens: tuple[int, ...]
    """Where each corpus begins in the joined stream."""

    @property
    def samples(self) -> int:
        """Samples of all corpora."""
        return sum(sampler.samples for sampler in self.samplers)

    def starts(self, positions: Ints) -> Ints:
        """The first token of the sample at each position, (n,)."""
        corpora, earlier = self.mixture.locate(positions)
        found = np.empty_like(positions)
        for number, (sampler, first) in enumerate(zip(self.samplers, self.first_tokens, strict=True)):
            mine = corpora == number
            found[mine] = first + sampler.starts(earlier[mine])
        return found

    def locate(self, positions: Ints) -> tuple[Ints, Ints]:
        """The epoch and the sample at each position, (n,) each, as its own corpus counts them."""
        corpora, earlier = self.mixture.locate(positions)
        epochs, index = np.empty_like(positions), np.empty_like(positions)
        for number, sampler in enumerate(self.samplers):
            mine = corpora == number
            epochs[mine], index[mine] = sampler.locate(earlier[mine])
        return epochs, index

    def epochs(self, position: int) -> dict[str, float]:
        """Passes over each of several corpora before a position, by name."""
        if len(self.names) == 1:
            return {}
        counts = self.mixture.counts(position)
        return {
            f"epoch/{name}": count / sampler.samples
            for name, count, sampler in zip(self.names, counts, self.samplers, strict=True)
        }

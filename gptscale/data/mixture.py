"""Mixtures: which corpus each sample of a run comes from, as a function of its position alone.

With weights n_1, ..., n_m (integers without a common divisor) and P their sum, the first k samples should hold
k * n_i / P of corpus i. This is the chairman assignment problem, and R. Tijdeman's rule (Discrete Mathematics 32, 1980)
keeps every count within 1 - 1 / (2m - 2) of its share for every k: at step k, of the corpora whose share is at least
1 / (2m - 2) ahead of their count, the one comes next whose lead would first reach 1 - 1 / (2m - 2). So the observed
share is exact to less than one sample at any length.

After P samples every count is exactly n_i: it is an integer, the share is too, and they differ by less than one. So the
assignment repeats with period P, one period is kept in a table, and a seek is a division: position q * P + r holds the
corpus of r, and q * n_i + (those of corpus i before r) samples of corpus i come before it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gptscale.errors import ConfigError

LONGEST_PERIOD = 100_000
"""Samples in the table; weights of up to five digits stay below it."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Mixture:
    """Shares of several corpora, as integers whose sum is the period."""

    shares: tuple[int, ...]

    @property
    def period(self) -> int:
        """Samples after which the assignment repeats."""
        return sum(self.shares)

    def locate(self, positions: Ints) -> tuple[Ints, Ints]:
        """The corpus of the sample at each position, and how many samples of that corpus come before it."""
        rounds, within = np.divmod(positions, self.period)
        corpora = self._corpora[within].astype(np.int64)
        return corpora, rounds * np.array(self.shares)[corpora] + self._earlier[within]

    def counts(self, samples: int) -> list[int]:
        """How many of the first so many samples come from each corpus."""
        rounds, rest = divmod(samples, self.period)
        partial = np.bincount(self._corpora[:rest], minlength=len(self.shares))
        return [rounds * share + int(count) for share, count in zip(self.shares, partial, strict=True)]

    @cached_property
    def _corpora(self) -> npt.NDArray[np.uint16]:
        """The corpus of each position of a period."""
        return np.array(_assign(self.shares), np.uint16)

    @cached_property
    def _earlier(self) -> npt.NDArray[np.int32]:
        """How many positions of the period before each have its corpus."""
        earlier = np.empty(self.period, np.int32)
        for corpus, share in enumerate(self.shares):
            earlier[self._corpora == corpus] = np.arange(share)
        return earlier


def mixture_of(weights: Sequence[float]) -> Mixture:
    """The mixture of these weights, taken as their decimals say. Raises ConfigError if its period is too long."""
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*whole)
    mixture = Mixture(tuple(share // divisor for share in whole))
    if mixture.period > LONGEST_PERIOD:
        raise ConfigError(
            f"the weights {', '.join(map(str, weights))} of data.mixture repeat only after {mixture.period:,} samples, "
            f"and {LONGEST_PERIOD:,} are the most; round them, such as to per mille"
        )
    return mixture


def _assign(shares: Sequence[int]) -> list[int]:
    """Tijdeman's rule over one period, in integers: leads are in units of 1 / (period * (2m - 2))."""
    corpora, period = len(shares), sum(shares)
    if corpora == 1:
        return [0] * period
    unit = 2 * corpora - 2
    leads = [0] * corpora  # unit * (k * share - period * count)
    assigned: list[int] = []
    for _ in range(period):
        leads = [lead + unit * share for lead, share in zip(leads, shares, strict=True)]
        ready = [i for i, lead in enumerate(leads) if lead >= period]
        # when a lead reaches its bound: (bound - lead) / share, compared without division
        chosen = min(ready, key=lambda i: Fraction((unit - 1) * period - leads[i], shares[i]))
        leads[chosen] -= unit * period
        assigned.append(chosen)
    return assigned

"""Which positions of the order are handed out when some are left out."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def positions_of(handed_out: Ints, skipped: Iterable[int]) -> Ints:
    """The position of each sample by how many were handed out before it, where the skipped positions never are."""
    left_out = np.unique(np.fromiter(skipped, np.int64))
    before = left_out - np.arange(len(left_out))  # how many are handed out before each skipped position
    return handed_out + np.searchsorted(before, handed_out, side="right")

"""The sample order: a keyed permutation of [0, n) that is computed, not stored.

A generalised Feistel network (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002) on
pairs (x, y) of Z_a x Z_b, where a = ceil(sqrt(n)) and b = ceil(n / a), so a * b exceeds n by less than a.
A round adds a keyed hash of one half to the other, modulo its size, which is undone by subtraction and is
therefore a bijection. A result outside [0, n) is sent through again until it falls inside ("cycle walking"),
which keeps it one. The hash is the finalizer of SplitMix64 (Steele, Lea and Flood, "Fast Splittable
Pseudorandom Number Generators", OOPSLA 2014).
"""

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

_ROUNDS = 8
_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio: the step between SplitMix64's states

Words = npt.NDArray[np.uint64]


def order(seed: int, epoch: int, positions: npt.ArrayLike, n: int) -> npt.NDArray[np.int64]:
    """The samples at positions of an epoch of n samples, in the shape of positions.

    Positions lie in [0, n). Each seed and epoch has its own permutation.
    """
    wanted = np.asarray(positions)
    assert n > 0
    assert wanted.size == 0 or (wanted.min() >= 0 and wanted.max() < n)
    return _permutation(wanted, n, _round_keys(seed, epoch))


def block_order(seed: int, epoch: int, positions: npt.ArrayLike, n: int, block: int) -> npt.NDArray[np.int64]:
    """As `order`, but blocks of neighbouring samples come one after another, each in an order of its own.

    The blocks are permuted, and the samples within each; what is left over for a shorter block comes last.
    """
    wanted = np.asarray(positions)
    blocks, within = np.divmod(wanted.reshape(-1), block)
    whole = n // block
    found = np.empty(len(blocks), np.int64)
    for number in np.unique(blocks).tolist():
        mine = blocks == number
        size = block if number < whole else n - whole * block
        place = int(order(seed, epoch, number, whole)) if number < whole else whole
        found[mine] = place * block + _permutation(within[mine], size, _round_keys(seed, epoch, number))
    return found.reshape(wanted.shape)


def positions_of(handed_out: npt.NDArray[np.int64], skipped: Iterable[int]) -> npt.NDArray[np.int64]:
    """The position of each sample by how many were handed out before it, where the skipped positions never are."""
    left_out = np.unique(np.fromiter(skipped, np.int64))
    before = left_out - np.arange(len(left_out))  # how many are handed out before each skipped position
    return handed_out + np.searchsorted(before, handed_out, side="right")


def _permutation(positions: npt.NDArray[np.int64], n: int, keys: Words) -> npt.NDArray[np.int64]:
    """Where positions of [0, n) go, in their shape."""
    found = _permute(positions.reshape(-1).astype(np.uint64), n, keys)
    while (outside := found >= n).any():
        found[outside] = _permute(found[outside], n, keys)
    return found.astype(np.int64).reshape(positions.shape)


def _permute(index: Words, n: int, keys: Words) -> Words:
    """One pass of the network over [0, a * b)."""
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    x, y = np.divmod(index, np.uint64(b))
    for x_key, y_key in keys.reshape(-1, 2):
        x = (x + _mix(y + x_key) % np.uint64(a)) % np.uint64(a)  # reduced first: the sum must not wrap
        y = (y + _mix(x + y_key) % np.uint64(b)) % np.uint64(b)
    return x * np.uint64(b) + y


def _round_keys(seed: int, *numbers: int) -> Words:
    """SplitMix64's stream from a state in which seed, epoch and perhaps block are mixed one after the other."""
    state = int(_mix(_words(seed + _GOLDEN))[0])
    for number in numbers:
        state = int(_mix(_words(state + (number + 1) * _GOLDEN))[0])
    return _mix(_words(*(state + (i + 1) * _GOLDEN for i in range(_ROUNDS))))


def _mix(z: Words) -> Words:
    """SplitMix64's finalizer; products are taken modulo 2**64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _words(*values: int) -> Words:
    return np.array([value & _MASK for value in values], dtype=np.uint64)

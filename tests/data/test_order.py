"""The sample order is a bijection, new for every seed and epoch, and never changes."""

import math
import time
import tracemalloc

import numpy as np
import pytest

from gptscale.data.order import block_order, order


@pytest.mark.parametrize("n", [*range(1, 40), 99, 100, 101, 1000, 4095, 4096, 4097, 65_537])
def test_every_sample_comes_once(n: int) -> None:
    assert np.array_equal(np.sort(order(3, 5, np.arange(n), n)), np.arange(n))


@pytest.mark.parametrize("block", [1, 2, 7, 32, 99, 100, 101, 1000])
@pytest.mark.parametrize("n", [1, 2, 31, 32, 100, 1001])
def test_every_sample_comes_once_in_blocks_too(n: int, block: int) -> None:
    found = block_order(3, 5, np.arange(n), n, block)
    assert np.array_equal(np.sort(found), np.arange(n))
    for start in range(0, n, block):
        piece = found[start : start + block]
        assert piece.max() - piece.min() == len(piece) - 1  # neighbours, in one block
        assert piece.min() % block == 0


def test_blocks_and_the_samples_in_them_have_new_orders_each_epoch() -> None:
    epochs = [block_order(3, epoch, np.arange(1000), 1000, 50) for epoch in range(4)]
    blocks = [tuple(found[::50] // 50) for found in epochs]
    within = [tuple(piece % 50) for found in epochs for piece in found.reshape(-1, 50)]
    assert len(set(blocks)) == 4
    assert len(set(within)) == 80
    assert not any(np.array_equal(piece, np.sort(piece)) for piece in within)


def test_a_part_of_a_block_order_equals_the_whole_there() -> None:
    whole = block_order(1, 2, np.arange(1000), 1000, 33)
    assert np.array_equal(block_order(1, 2, [[7, 999], [0, 7]], 1000, 33), whole[[[7, 999], [0, 7]]])


def test_a_part_of_the_order_equals_the_whole_there() -> None:
    whole = order(1, 2, np.arange(1000), 1000)
    assert np.array_equal(order(1, 2, np.array([7, 999, 0, 7]), 1000), whole[[7, 999, 0, 7]])
    assert int(order(1, 2, 7, 1000)) == whole[7]
    assert order(1, 2, np.zeros((2, 3), np.int64), 1000).shape == (2, 3)
    assert order(1, 2, [], 1000).shape == (0,)


def test_a_trillion_samples_need_no_memory() -> None:
    n = 10**12
    found = order(0, 0, np.arange(n - 100_000, n), n)
    assert len(np.unique(found)) == 100_000
    assert found.min() >= 0
    assert found.max() < n


def test_each_seed_and_epoch_has_its_own_order() -> None:
    orders = [tuple(order(s, e, np.arange(100), 100)) for s in range(10) for e in range(10)]
    assert len(set(orders)) == 100


def test_seeds_beyond_64_bits_are_taken() -> None:
    assert sorted(order(2**70, 0, np.arange(10), 10)) == list(range(10))


@pytest.mark.parametrize("n", [18, 1000])
def test_a_position_sees_every_sample_equally_often(n: int) -> None:
    # Over 400 n epochs each of n samples is expected 400 times at position 3.
    # Chi-square with n - 1 degrees of freedom: mean n - 1, standard deviation sqrt(2 (n - 1)).
    epochs = 400 * n if n < 100 else 20 * n
    counts = np.bincount([int(order(0, e, 3, n)) for e in range(epochs)], minlength=n)
    expected = epochs / n
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - (n - 1)) < 4 * np.sqrt(2 * (n - 1))


def test_neighbours_are_torn_apart() -> None:
    n = 1_000_000
    found = order(0, 0, np.arange(n), n).astype(np.float64)
    # Neighbours and places of a random permutation are uncorrelated: standard deviation 1 / sqrt(n) = 0.001.
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.004
    assert abs(np.corrcoef(found, np.arange(n))[0, 1]) < 0.004


def test_all_orders_of_three_are_equally_likely() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(6000):
        key = tuple(order(0, epoch, np.arange(3), 3).tolist())
        counts[key] = counts.get(key, 0) + 1
    # six orders, 1000 each, standard deviation 29
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts.values()) < 5 * 29


def order_in_plain_integers(seed: int, epoch: int, position: int, n: int) -> int:
    """The construction of the module's docstring, one position at a time."""

    def mix(z: int) -> int:
        z %= 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    state = mix(mix(seed + golden) + (epoch + 1) * golden)
    keys = [mix(state + i * golden) for i in range(1, 9)]
    a = math.isqrt(n - 1) + 1
    b = math.ceil(n / a)
    while True:
        x, y = divmod(position, b)
        for i in range(0, 8, 2):
            x = (x + mix(y + keys[i]) % a) % a
            y = (y + mix(x + keys[i + 1]) % b) % b
        position = x * b + y
        if position < n:
            return position


@pytest.mark.parametrize("n", [1, 2, 3, 18, 1000, 10**6 + 3, 10**12])
def test_the_order_is_the_network_in_plain_integers(n: int) -> None:
    positions = sorted({*range(min(n, 50)), n - 1})
    expected = [order_in_plain_integers(2**64 - 1, 9, p, n) for p in positions]
    assert order(2**64 - 1, 9, positions, n).tolist() == expected


def test_the_order_never_changes_silently() -> None:
    assert order(1337, 0, np.arange(18), 18).tolist() == GOLDEN_18
    assert order(1337, 1, np.arange(18), 18).tolist() == GOLDEN_18_NEXT
    assert order(0, 0, np.arange(4), 10**12).tolist() == GOLDEN_TRILLION


GOLDEN_18 = [0, 16, 1, 14, 7, 5, 10, 3, 8, 17, 12, 9, 15, 13, 2, 11, 6, 4]
GOLDEN_18_NEXT = [14, 0, 15, 10, 4, 1, 12, 3, 9, 13, 6, 17, 16, 8, 5, 11, 2, 7]
GOLDEN_TRILLION = [296242059201, 696423595673, 212925517863, 204284174764]


def test_the_order_of_a_trillion_tokens_starts_at_once() -> None:
    samples = 10**12 // 1024
    tracemalloc.start()
    began = time.perf_counter()
    order(0, 0, np.arange(samples - 512, samples), samples)
    seconds, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**6
    assert seconds < 0.05 * 20  # on a machine that is busy with tests


def test_what_a_block_holds_is_ordered_unlike_any_epoch() -> None:
    n = 64
    for epoch in range(3):
        found = block_order(3, epoch, np.arange(n * n), n * n, n).reshape(n, n) % n  # n blocks of n samples
        epochs = np.stack([order(3, other, np.arange(n), n) for other in range(n + 3)])
        assert not (found[:, None] == epochs).all(2).any()

"""Every corpus has its share of any number of samples, to less than one."""

import random

import numpy as np
import pytest

from gptscale.data.mixture import Mixture, mixture_of
from gptscale.errors import ConfigError

WEIGHTS = [
    (1,),
    (1, 1),
    (0.7, 0.3),
    (1, 999),
    (5, 3, 2),
    (1, 1, 1, 1, 1, 1, 1),
    (0.5, 0.25, 0.125, 0.0625, 0.0625),
    (900, 1, 1, 1, 1, 1),
    (17, 13, 11, 7, 5, 3, 2),
]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_share_is_exact_to_one_sample_at_any_length(weights: tuple[float, ...]) -> None:
    mixture = mixture_of(weights)
    length = 3 * mixture.period
    corpora, _ = mixture.locate(np.arange(length))
    counts = np.cumsum(corpora[:, None] == np.arange(len(weights)), axis=0)
    wanted = np.arange(1, length + 1)[:, None] * np.array(weights) / sum(weights)
    bound = 1 - 1 / (2 * len(weights) - 2) if len(weights) > 1 else 0
    assert np.abs(counts - wanted).max() <= bound + 1e-9
    for samples in (0, 1, length // 2, length):
        assert mixture.counts(samples) == (counts[samples - 1].tolist() if samples else [0] * len(weights))


def test_random_weights_keep_their_shares_too() -> None:
    numbers = random.Random(0)
    for _ in range(50):
        shares = tuple(numbers.randint(1, 60) for _ in range(numbers.randint(2, 9)))
        corpora, _ = Mixture(shares).locate(np.arange(sum(shares)))
        counts = np.cumsum(corpora[:, None] == np.arange(len(shares)), axis=0)
        wanted = np.arange(1, sum(shares) + 1)[:, None] * np.array(shares) / sum(shares)
        assert np.abs(counts - wanted).max() < 1


@pytest.mark.parametrize("weights", WEIGHTS)
def test_each_corpus_hands_out_its_samples_in_turn(weights: tuple[float, ...]) -> None:
    mixture = mixture_of(weights)
    corpora, earlier = mixture.locate(np.arange(2 * mixture.period + 7))
    for corpus in range(len(weights)):
        mine = earlier[corpora == corpus]
        assert mine.tolist() == list(range(len(mine)))


def test_any_position_is_found_without_those_before() -> None:
    mixture = mixture_of((5, 3, 2))
    near, far = np.arange(100, 140), 10**15 * 10 + np.arange(100, 140)
    assert mixture.locate(far)[0].tolist() == mixture.locate(near)[0].tolist()
    shift = mixture.locate(far)[1] - mixture.locate(near)[1]
    assert set(zip(mixture.locate(near)[0].tolist(), shift.tolist(), strict=True)) == {
        (0, 5 * 10**15), (1, 3 * 10**15), (2, 2 * 10**15)
    }  # fmt: skip


def test_weights_are_taken_as_their_decimals_say() -> None:
    assert mixture_of((0.7, 0.3)).shares == mixture_of((7, 3)).shares == mixture_of((70.0, 30.0)).shares == (7, 3)
    assert mixture_of((1e-3, 1)).shares == (1, 1000)


def test_weights_that_hardly_repeat_are_refused() -> None:
    match = (
        r"the weights 0.123457, 0.7 of data.mixture repeat only after 823,457 samples, and 100,000 are the most; round"
    )
    with pytest.raises(ConfigError, match=match):
        mixture_of((0.123457, 0.7))
    assert mixture_of((0.33333, 0.66667)).period == 100_000


def test_the_assignment_never_changes_silently() -> None:
    assert mixture_of((5, 3, 2)).locate(np.arange(10))[0].tolist() == GOLDEN


GOLDEN = [0, 1, 0, 2, 0, 1, 0, 2, 1, 0]

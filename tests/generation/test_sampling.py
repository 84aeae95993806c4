import math

import pytest
import torch

from gptscale.generation.sampling import choose, keep_top_k, keep_top_p

# softmax of these is 0.5, 0.25, 0.15, 0.1
LOGITS = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()


def kept(logits: torch.Tensor) -> list[bool]:
    return logits[0].isfinite().tolist()


def test_temperature_zero_takes_the_likeliest() -> None:
    assert choose(torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 0.0]]), temperature=0).tolist() == [1, 0]


@pytest.mark.parametrize(("k", "expected"), [(1, [1, 0, 0, 0]), (3, [1, 1, 1, 0]), (9, [1, 1, 1, 1])])
def test_top_k_keeps_the_k_likeliest(k: int, expected: list[int]) -> None:
    assert kept(keep_top_k(LOGITS, k)) == [bool(e) for e in expected]


@pytest.mark.parametrize(
    ("p", "expected"), [(0.4, [1, 0, 0, 0]), (0.6, [1, 1, 0, 0]), (0.85, [1, 1, 1, 0]), (1.0, [1, 1, 1, 1])]
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float, expected: list[int]) -> None:
    assert kept(keep_top_p(LOGITS, p)) == [bool(e) for e in expected]


def test_top_p_finds_the_likeliest_in_any_order() -> None:
    assert kept(keep_top_p(LOGITS.flip(-1), 0.6)) == [False, False, True, True]


def test_draws_follow_the_probabilities_at_a_temperature() -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = choose(LOGITS.expand(20_000, 4), temperature=2.0, generator=generator)
    roots = [math.sqrt(p) for p in (0.5, 0.25, 0.15, 0.1)]  # temperature 2 takes the root of each probability
    for token, root in enumerate(roots):
        assert float((drawn == token).float().mean()) == pytest.approx(root / sum(roots), abs=0.015)


def test_top_k_and_top_p_limit_what_is_drawn() -> None:
    generator = torch.Generator().manual_seed(1)
    many = LOGITS.expand(500, 4)
    assert set(choose(many, top_k=2, generator=generator).tolist()) == {0, 1}
    assert set(choose(many, top_p=0.8, generator=generator).tolist()) == {0, 1, 2}


def test_extreme_settings_take_the_likeliest() -> None:
    assert choose(LOGITS, temperature=1e-45).tolist() == [0]
    assert kept(keep_top_p(LOGITS, 0.0)) == [True, False, False, False]

import math

import pytest
import torch

from gptscale.generation.sampling import (
    Sampling,
    draw,
    filtered,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalized,
    uniform_at,
)

# softmax of these is 0.5, 0.25, 0.15, 0.1
LOGITS = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()


def kept(logits: torch.Tensor) -> list[bool]:
    return logits[0].isfinite().tolist()


def chosen(sampling: Sampling, uniforms: list[float], rows: list[list[int]] | None = None) -> list[int]:
    many = LOGITS.expand(len(uniforms), 4)
    return draw(filtered(many, rows or [[]] * len(uniforms), sampling), uniforms)


@pytest.mark.parametrize(("k", "expected"), [(1, [1, 0, 0, 0]), (3, [1, 1, 1, 0]), (9, [1, 1, 1, 1])])
def test_top_k_keeps_the_k_likeliest(k: int, expected: list[int]) -> None:
    assert kept(keep_top_k(LOGITS, k)) == [bool(e) for e in expected]


@pytest.mark.parametrize(
    ("p", "expected"), [(0.4, [1, 0, 0, 0]), (0.6, [1, 1, 0, 0]), (0.85, [1, 1, 1, 0]), (1.0, [1, 1, 1, 1])]
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float, expected: list[int]) -> None:
    assert kept(keep_top_p(LOGITS, p)) == [bool(e) for e in expected]


def test_top_p_takes_no_more_once_p_is_reached_exactly() -> None:
    assert sum(kept(keep_top_p(torch.zeros(1, 4), 0.5))) == 2  # of four quarters


def test_top_p_finds_the_likeliest_in_any_order() -> None:
    assert kept(keep_top_p(LOGITS.flip(-1), 0.6)) == [False, False, True, True]


def test_a_number_draws_the_token_at_which_the_summed_probability_passes_it() -> None:
    # 0.5, 0.75, 0.9 and 1 are the sums
    uniforms = [0.0, 0.49, 0.51, 0.74, 0.76, 0.89, 0.91, 1 - 2**-53]
    assert chosen(Sampling(), uniforms) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_number_on_a_border_draws_the_token_behind_it_and_zero_none_that_is_cut_off() -> None:
    # the sums 0, 1/2 and 1 are exact
    assert draw(torch.tensor([[-torch.inf, 0.0, 0.0]] * 3), [0.0, 0.25, 0.5]) == [1, 1, 2]


def test_a_temperature_of_two_takes_the_root_of_each_probability() -> None:
    roots = [math.sqrt(p) for p in (0.5, 0.25, 0.15, 0.1)]
    edges = [sum(roots[: i + 1]) / sum(roots) for i in range(3)]
    uniforms = [edge + side for edge in edges for side in (-1e-6, 1e-6)]
    assert chosen(Sampling(temperature=2.0), uniforms) == [0, 1, 1, 2, 2, 3]


def test_what_is_cut_off_is_never_drawn() -> None:
    almost_one = [1 - 2**-53]
    assert chosen(Sampling(top_k=2), almost_one) == [1]
    assert chosen(Sampling(top_p=0.8), almost_one) == [2]
    assert chosen(Sampling(min_p=0.4), almost_one) == [1]
    assert draw(torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]]), almost_one) == [2]


@pytest.mark.parametrize(("p", "expected"), [(0.0, [1, 1, 1, 1]), (0.25, [1, 1, 1, 0]), (1.0, [1, 0, 0, 0])])
def test_min_p_keeps_what_is_at_least_p_times_as_likely_as_the_likeliest(p: float, expected: list[int]) -> None:
    assert kept(keep_min_p(LOGITS, p)) == [bool(e) for e in expected]


def test_a_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]])
    assert penalized(logits, [[0, 1, 0], [2]], 2.0).tolist() == [[1.0, -4.0, 1.0], [2.0, -2.0, 0.5]]
    assert logits.tolist() == [[2.0, -2.0, 1.0]] * 2


def test_extreme_settings_take_the_likeliest() -> None:
    assert chosen(Sampling(temperature=1e-45), [0.999]) == [0]
    assert chosen(Sampling(temperature=1e-320), [0.999]) == [0]  # which is 0 in single precision
    assert kept(keep_top_p(LOGITS, 0.0)) == [True, False, False, False]


def test_numbers_are_even_and_another_for_every_token() -> None:
    numbers = torch.tensor([uniform_at(3, row, at) for row in range(50) for at in range(100)], dtype=torch.float64)
    assert len(set(numbers.tolist())) == 5000
    assert 0 <= float(numbers.min()) <= float(numbers.max()) < 1
    assert numbers.histc(10, 0, 1).tolist() == pytest.approx([500] * 10, abs=100)  # four and a half deviations
    assert uniform_at(3, 1, 2) == uniform_at(3, 1, 2) != uniform_at(4, 1, 2)


def test_logits_that_are_no_numbers_draw_no_token_that_does_not_exist() -> None:
    logits = torch.zeros(2, 4)
    logits[1, 2] = math.nan
    assert draw(logits, [0.3, 0.3]) == [1, 3]

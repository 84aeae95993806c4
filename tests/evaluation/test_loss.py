import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gptscale.data.loader import MicroBatch
from gptscale.evaluation.loss import Evaluation, evaluate_loss, mixed

CPU = torch.device("cpu")


def batch(*rows: list[int]) -> MicroBatch:
    targets = torch.tensor(rows)
    return MicroBatch(torch.zeros_like(targets), targets, 0)


def nats_by_token(inputs: Tensor, targets: Tensor) -> Tensor:
    """A model that pays as many nats for a token as its id says."""
    return targets.float()


def test_the_mean_is_over_tokens_and_filler_does_not_count() -> None:
    token_bytes = np.array([0, 1, 2, 4])
    found = evaluate_loss(nats_by_token, [batch([1, 2, 3]), batch([3, -100, -100])], token_bytes, CPU)
    assert (found.nats, found.tokens, found.bytes) == (9.0, 4, 11)
    assert found.loss == 2.25
    assert found.perplexity == pytest.approx(math.exp(2.25))
    assert found.bits_per_byte == pytest.approx(9 / math.log(2) / 11)


def test_the_loss_at_a_position_is_the_mean_over_the_windows_that_count_it() -> None:
    found = evaluate_loss(nats_by_token, [batch([1, 2, -100], [3, 3, -100])], np.ones(4, int), CPU)
    assert found.by_position[:2] == (2.0, 2.5)
    assert math.isnan(found.by_position[2])


def test_nats_are_rounded_to_their_fraction_and_not_cut() -> None:
    # 0.1 in float32 is 1,677,721.625 of them
    found = evaluate_loss(lambda *_: torch.full((1, 2), 0.1), [batch([1, 2])], np.ones(4, int), CPU)
    assert found.nats == 2 * 1_677_722 / 2**24


def test_other_ranks_sums_are_added() -> None:
    found = evaluate_loss(nats_by_token, [batch([1, 2])], np.ones(4, int), CPU, total=lambda value: value * 3)
    assert (found.nats, found.tokens, found.bytes) == (9.0, 6, 6)


def test_no_order_and_no_division_of_the_batches_changes_a_bit() -> None:
    losses = torch.rand(40, 8, generator=torch.Generator().manual_seed(0)) * 10
    batches = [MicroBatch(losses[i : i + 2], torch.ones(2, 8, dtype=torch.int64), 0) for i in range(0, 40, 2)]

    def pays(inputs: Tensor, targets: Tensor) -> Tensor:
        return inputs

    whole = evaluate_loss(pays, batches, np.ones(4, int), CPU)
    assert evaluate_loss(pays, batches[::-1], np.ones(4, int), CPU) == whole

    shares: list[Tensor] = []
    evaluate_loss(pays, batches[1::2], np.ones(4, int), CPU, total=lambda sums: shares.append(sums) or sums)
    two_ranks = evaluate_loss(pays, batches[::2], np.ones(4, int), CPU, total=lambda sums: sums + shares[0])
    assert two_ranks == whole
    assert whole.loss == pytest.approx(float(losses.double().mean()), abs=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_not_hidden(bad: float) -> None:
    def pays(inputs: Tensor, targets: Tensor) -> Tensor:
        return torch.tensor([[1.0, bad]])

    found = evaluate_loss(pays, [batch([1, 2])], np.ones(4, int), CPU)
    assert math.isnan(found.loss)
    assert math.isnan(found.perplexity)


def test_sets_of_windows_count_by_their_shares_however_many_windows_they_have() -> None:
    # 2 nats and 4 bytes a token, and 5 nats and 1 byte
    parts = [Evaluation(20.0, 10, 40), Evaluation(150.0, 30, 30)]
    found = mixed(parts, [3, 1])
    assert found.loss == 2.75  # (3 * 2 + 5) / 4
    assert found.bits_per_byte == pytest.approx(2.75 / math.log(2) / 3.25)  # a token of the mixture has 3.25 bytes
    assert mixed(parts[:1], [1]) == parts[0]
    assert mixed([Evaluation(2.0, 1, 3), Evaluation(2.0, 2, 3)], [1, 1]).bytes == 7  # 1.5 * 3 + 1.5 * 1.5 = 6.75


def test_a_mixture_has_a_loss_at_every_position() -> None:
    parts = [Evaluation(8.0, 4, 4, (2.0, 1.0, math.nan)), Evaluation(20.0, 4, 4, (6.0, 5.0, 1.0))]
    first, second, third = mixed(parts, [3, 1]).by_position
    assert (first, second) == (3.0, 2.0)  # (3 * 2 + 6) / 4 and (3 * 1 + 5) / 4
    assert math.isnan(third)


def test_extreme_losses_have_a_perplexity() -> None:
    assert Evaluation(1e6, 1, 1).perplexity == math.inf
    assert math.isnan(Evaluation(1.0, 1, 0).bits_per_byte)

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gptscale.data.loader import MicroBatch
from gptscale.evaluation.loss import Evaluation, evaluate_loss

CPU = torch.device("cpu")


def batch(*targets: int) -> MicroBatch:
    row = torch.tensor([targets])
    return MicroBatch(torch.zeros_like(row), row, 0)


def nats_by_token(inputs: Tensor, targets: Tensor) -> Tensor:
    """A model that pays as many nats for a token as its id says."""
    return targets[targets >= 0].sum().float()


def test_the_mean_is_over_tokens_and_filler_does_not_count() -> None:
    token_bytes = np.array([0, 1, 2, 4])
    found = evaluate_loss(nats_by_token, [batch(1, 2, 3), batch(3, -100, -100)], token_bytes, CPU)
    assert (found.nats, found.tokens, found.bytes) == (9.0, 4, 11)
    assert found.loss == 2.25
    assert found.perplexity == pytest.approx(math.exp(2.25))
    assert found.bits_per_byte == pytest.approx(9 / math.log(2) / 11)


def test_other_ranks_sums_are_added() -> None:
    found = evaluate_loss(nats_by_token, [batch(1, 2)], np.ones(4, int), CPU, total=lambda value: value * 3)
    assert (found.nats, found.tokens, found.bytes) == (9.0, 6, 6)


def test_extreme_losses_have_a_perplexity() -> None:
    assert Evaluation(1e6, 1, 1).perplexity == math.inf
    assert math.isnan(Evaluation(1.0, 1, 0).bits_per_byte)

"""What is asked of tensors before they are taken."""

import math

import pytest
import torch

from gptscale.checkpoint.source import open_weights
from gptscale.config.schema import Config
from gptscale.training.run import train
from gptscale.weights.source import all_finite
from tests.planning.measure import peak_bytes


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 500, 1_000])
def test_one_value_that_is_not_finite_is_found(value: float, dtype: torch.dtype, place: int) -> None:
    tensor = torch.linspace(-60_000, 60_000, 1_001).to(dtype)
    assert all_finite(tensor)
    tensor[place] = value
    assert not all_finite(tensor)


def test_the_largest_values_are_finite_and_no_copy_is_taken_to_see_it() -> None:
    largest = torch.finfo(torch.float32).max
    tensor = torch.tensor([-largest, largest]).repeat(100_000)
    assert all_finite(tensor)
    assert peak_bytes(lambda: all_finite(tensor)) < tensor.nbytes / 100


def test_the_weights_of_a_run_come_without_padding(cfg: Config) -> None:
    train(cfg)
    source = open_weights(str(cfg.run.dir))
    assert source.tokenizer == "bytes"
    assert source.tensors["tok_emb.weight"].shape == (257, 32)
    assert {name: stored.shape for name, stored in source.tensors.items()} == {
        name: tuple(stored.read().shape) for name, stored in source.tensors.items()
    }

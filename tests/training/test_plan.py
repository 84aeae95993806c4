from pathlib import Path
from typing import Any

import pytest

from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.errors import ConfigError
from gptscale.training.plan import Segment, make_plan
from tests.conftest import small_values


def config(train: dict[str, Any], warmup_steps: int = 0) -> Config:
    values = small_values(Path("nowhere"))
    values["train"] = {"tokens_per_step": 320, "micro_batch_sequences": 4, **train}  # 10 sequences of 32
    values["optim"]["warmup_steps"] = warmup_steps
    return parse_config(values)


def test_tokens_and_epochs_come_to_whole_steps() -> None:
    assert make_plan(config({"steps": 7}), 100, 1).total_steps == 7
    assert make_plan(config({"tokens": 1000}), 100, 1).total_steps == 3  # 3 * 320 = 960
    assert make_plan(config({"epochs": 2.5}), 101, 1).total_steps == 25  # 252.5 samples
    assert make_plan(config({"steps": 7}), 100, 1).epoch_at(5) == 0.5
    assert make_plan(config({"epochs": 4.35}), 1000, 1).total_steps == 435  # as binary numbers 4,349.99.. samples
    assert make_plan(config({"epochs": 1e-1}), 1000, 1).total_steps == 10


def test_earlier_steps_of_another_size_count_with_what_they_took() -> None:
    plan = make_plan(config({"steps": 7}), 100, 1, Segment(step=4, samples=60, tokens_per_step=320))
    assert (plan.samples_at(6), plan.tokens_at(6), plan.epoch_at(6)) == (80, 80 * 32, 0.8)  # 4 steps of 15, 2 of 10


@pytest.mark.parametrize(("world", "accumulation", "filler"), [(1, 3, 2), (2, 2, 6), (3, 1, 2), (4, 1, 6)])
def test_ranks_only_divide_a_step(world: int, accumulation: int, filler: int) -> None:
    # 10 sequences in micro-batches of 4 are 3 micro-batches
    plan = make_plan(config({"steps": 7}), 100, world)
    assert (plan.accumulation, plan.filler_sequences) == (accumulation, filler)
    assert plan.tokens_per_step == 320


def test_a_run_of_no_step_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the run comes to no step: train.tokens=100.*train longer or lower"):
        make_plan(config({"tokens": 100}), 100, 1)


def test_warmup_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim.warmup_steps=7 leaves nothing of the run's 7 steps"):
        make_plan(config({"steps": 7}, warmup_steps=7), 100, 1)

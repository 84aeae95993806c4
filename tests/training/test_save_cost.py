"""What a save is said to have cost, from steps of known length."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptscale.checkpoint.store import Saved
from gptscale.training.save_cost import SaveCost


def step(seconds: float) -> Any:
    return SimpleNamespace(seconds=lambda: seconds)


def saved(number: int, durable_s: float = 1.0) -> Saved:
    return Saved(Path(), step=number, bytes=10, stall_s=0.5, durable_s=durable_s)


def test_the_slowdown_is_that_of_the_steps_beside_the_save() -> None:
    cost = SaveCost()
    for seconds in (9, 2, 2):  # the first of all compiles
        cost.add(step(seconds), writing=False)
    for seconds in (2, 4):
        cost.add(step(seconds), writing=True)
    assert cost.measured(saved(5)) == {
        "checkpoint/step": 5, "checkpoint/bytes": 10, "checkpoint/stall_s": 0.5, "checkpoint/durable_s": 1,
        "checkpoint/slowdown": 0.5,  # a mean of 3 s beside a median of 2
    }  # fmt: skip
    cost.add(step(2), writing=True)
    assert cost.measured(saved(6))["checkpoint/slowdown"] == 0  # the earlier save's steps no longer count


def test_without_steps_to_compare_nothing_is_said() -> None:
    cost = SaveCost()
    cost.add(step(1), writing=True)
    assert "checkpoint/slowdown" not in cost.measured(saved(1))
    cost.add(step(1), writing=False)
    assert "checkpoint/slowdown" not in cost.measured(saved(2))


def test_the_longest_save_is_remembered() -> None:
    cost = SaveCost()
    assert cost.longest_s is None
    for number, durable_s in enumerate((2.0, 5.0, 3.0)):
        cost.measured(saved(number, durable_s))
    assert cost.longest_s == pytest.approx(5)

"""What a run remembers: which of its checkpoints is the best."""

import math

import pytest

from gptscale.training.state import Best, TrainState


@pytest.mark.parametrize(
    ("losses", "best"),
    [([3.0, 2.0, 2.5], 2), ([math.nan, 3.0, 2.0], 3), ([3.0, math.nan, math.inf], 1), ([math.nan], None)],
)
def test_the_best_has_the_lowest_loss_that_is_a_number(losses: list[float], best: int | None) -> None:
    state = TrainState()
    for loss in losses:
        state.advance(8)
        state.val_loss = loss
        state.note_save()
    assert state.best == (Best(best, losses[best - 1]) if best else None)

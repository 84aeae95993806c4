"""What a run remembers: which of its checkpoints is the best, and all else over a resume."""

import json
import math

import pytest

from gptscale.training.plan import Segment
from gptscale.training.state import Best, TrainState


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([3.0, 2.0, 2.5], 2),
        ([math.nan, 3.0, 2.0], 3),
        ([3.0, math.nan, math.inf], 1),
        ([3.0, 2.0, 2.0], 2),
        ([math.nan], None),
    ],
)
def test_the_best_has_the_lowest_loss_that_is_a_number(losses: list[float], best: int | None) -> None:
    state = TrainState()
    for loss in losses:
        state.advance(8)
        state.val_loss = loss
        state.note_save()
    assert state.best == (Best(best, losses[best - 1]) if best else None)


def test_a_ledger_gives_back_the_whole_state() -> None:
    state = TrainState(
        lr=1e-3,
        total_steps=9,
        step=7,
        samples=52,
        skipped_windows=[3, 4],
        rollbacks=2,
        recent_losses=[3.5, 3.25],
        skips_in_a_row=1,
        time_s=9.5,
        look_s=1.5,
        loss_scaler={"scale": 1024.0, "good_steps": 3},
        interval={"loss": [1.0, 2.0]},
        segments=[Segment(0, 0, 256), Segment(5, 40, 192)],
        best=Best(6, 2.5),
        val_loss=2.75,
    )
    plain, new = vars(state), vars(TrainState())
    assert [name for name in plain if plain[name] == new[name]] == []  # so that no field can be lost unseen
    assert TrainState.from_ledger(json.loads(json.dumps(state.ledger()))) == state


def test_a_ledger_of_a_run_that_diverged_is_json() -> None:
    interval = {"losses": [math.nan, 3.0], "norms": [math.inf, 1.0]}
    ledger = TrainState(val_loss=math.nan, interval=interval).ledger()
    again = TrainState.from_ledger(json.loads(json.dumps(ledger, allow_nan=False)))
    assert again.val_loss is None
    assert [value for values in again.interval.values() for value in values if math.isfinite(value)] == [3.0, 1.0]
    assert [len(values) for values in again.interval.values()] == [2, 2]


def test_a_loss_that_was_found_at_an_earlier_step_makes_no_checkpoint_the_best() -> None:
    state = TrainState()
    state.advance(8)
    state.val_loss = 2.0
    state.advance(8)
    state.note_save()
    assert state.best is None

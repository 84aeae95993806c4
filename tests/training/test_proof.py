"""The verdict says no more than the traces do."""

from pathlib import Path

import pytest

from gptscale.checkpoint.layout import step_dir
from gptscale.config.load import parse_config
from gptscale.errors import TrainingError
from gptscale.runtime.processes import Place
from gptscale.training.proof import Proof, Trace, _await_checkpoint, _shortened, _whole_trace
from tests.conftest import small_values

NONE, DDP, ZERO3, ZERO3X4 = Place("none", 1), Place("ddp", 2), Place("zero3", 2), Place("zero3", 4)
TRACE: Trace = {1: (4.0, 2.0), 2: (3.0, 1.0), 3: (2.0, 0.5)}


def proof(before: Place, after: Place, resumed: Trace, precision: str = "fp32", same: bool | None = None) -> Proof:
    return Proof(before, after, precision, 1, 2, TRACE, resumed, same)


def off_by(loss: float = 0.0, norm: float = 0.0) -> Trace:
    """Step 2 differs by these shares."""
    return {**TRACE, 2: (3.0 * (1 + loss), 1.0 * (1 + norm))}


def test_equal_traces_and_states_are_bit_exact() -> None:
    found = proof(DDP, DDP, dict(TRACE), same=True)
    assert found.holds
    assert found.verdict() == (
        "bit-exact: every loss and gradient norm of 3 steps is the same, and so are all weights and moments after the last one"
    )
    elsewhere = proof(DDP, ZERO3, dict(TRACE))
    assert elsewhere.holds
    assert elsewhere.verdict() == "bit-exact: every loss and gradient norm of 3 steps is the same"


def test_equal_traces_with_other_weights_prove_nothing() -> None:
    found = proof(DDP, DDP, dict(TRACE), same=False)
    assert not found.holds
    assert found.verdict() == "NOT PROVED: the traces are equal, but the last checkpoints are not"


def test_in_the_same_place_the_smallest_difference_is_too_much() -> None:
    found = proof(NONE, NONE, off_by(norm=1e-9), same=True)
    assert not found.holds
    assert "NOT PROVED: differs by 1e-09 at most (step 2), allowed 0; engine and ranks are the same" in found.verdict()


@pytest.mark.parametrize(
    ("precision", "loss", "norm", "holds"),
    [
        ("fp32", 9e-6, 0.0, True),
        ("fp32", 0.0, 1.2e-5, False),
        ("fp32", -1.2e-5, 0.0, False),
        ("bf16", 9e-4, 9e-2, True),
        ("bf16-sharded", 1.2e-3, 0.0, False),
    ],
)
def test_elsewhere_the_bound_is_that_of_the_precision(precision: str, loss: float, norm: float, holds: bool) -> None:
    found = proof(DDP, ZERO3, off_by(loss, norm), precision)
    assert found.holds is holds
    assert found.verdict().startswith("as promised: " if holds else "NOT PROVED: ")


def test_the_reason_for_a_difference_is_told() -> None:
    assert "zero3 adds the same numbers in another order than ddp" in proof(DDP, ZERO3, off_by(1e-6)).verdict()
    assert "4 instead of 2 ranks add the same numbers in another order" in proof(ZERO3, ZERO3X4, off_by(1e-6)).verdict()


def test_a_run_that_ends_before_the_kill_says_what_to_do(tmp_path: Path) -> None:
    class Ended:
        def running(self) -> bool:
            return False

    def wait() -> None:
        _await_checkpoint(Ended(), tmp_path, 2)  # type: ignore[arg-type]

    record = '{"step": %d, "train/loss": 2.0, "train/grad_norm": 1.0}\n'
    step_dir(tmp_path, 2).mkdir(parents=True)
    (tmp_path / "log.jsonl").write_text(record % 2)  # nothing that the kill would undo
    with pytest.raises(TrainingError, match="over before it could be killed after step 2; raise --steps"):
        wait()
    (tmp_path / "log.jsonl").write_text(record % 2 + record % 3)
    wait()


def test_a_run_of_any_length_is_made_as_short_as_the_proof(tmp_path: Path) -> None:
    values = small_values(tmp_path)
    values["train"] |= {"steps": None, "epochs": 3.0, "profile_at_step": 2}
    values["optim"]["warmup_steps"] = 50
    short = _shortened(parse_config(values), 12, 6, tmp_path / "whole")
    assert (short.train.steps, short.train.epochs, short.train.profile_at_step) == (12, None, None)
    assert (short.optim.warmup_steps, short.checkpoint.every_steps, short.checkpoint.keep) == (3, 6, None)


def test_a_norm_that_is_no_number_equals_only_another_such() -> None:
    nan = float("nan")
    skipped = {**TRACE, 2: (3.0, nan)}
    both = Proof(DDP, DDP, "fp16", 1, 2, skipped, dict(skipped), same_state=True)
    assert both.holds
    assert both.difference_at(2) == 0.0
    assert proof(DDP, ZERO3, skipped, "fp16").difference == (float("inf"), 2)


def test_a_run_that_was_stopped_proves_nothing(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "train/loss": 2.0, "train/grad_norm": 1.0}\n')
    assert _whole_trace(tmp_path, 1) == {1: (2.0, 1.0)}
    with pytest.raises(TrainingError, match="was stopped after 1 of 2 steps; start the proof again"):
        _whole_trace(tmp_path, 2)

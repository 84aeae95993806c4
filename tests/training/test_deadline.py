"""The end of a run's time."""

import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.errors import ConfigError
from gptscale.runtime import slurm
from gptscale.tracking.jsonl import read_log
from gptscale.training import run
from gptscale.training.deadline import Deadline, open_deadline
from gptscale.training.look import Look
from gptscale.training.run import train
from gptscale.training.state import TrainState


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_is_near_when_a_step_and_a_checkpoint_half_as_long_again_no_longer_fit() -> None:
    clock = Clock()
    deadline = Deadline(100.0, "", guessed_save_s=8.0, clock=clock)
    answers = {}
    for clock.now in (0, 30, 32, 42, 44, 70, 76, 78):  # the first step, of 30 s, does not count
        answers[clock.now] = deadline.near(None)
    # from 42 on the longest step is 10 s, from 70 on 26 s: 70 + 1.5 * (26 + 8) > 100 > 44 + 1.5 * (10 + 8)
    assert answers == {0: False, 30: False, 32: False, 42: False, 44: False, 70: True, 76: True, 78: True}


def test_the_way_back_of_a_rollback_is_no_step() -> None:
    clock = Clock()
    deadline = Deadline(1000.0, "", clock=clock)
    for clock.now in (0, 30, 31, 32):
        assert not deadline.near(1.0)
    deadline.pause()
    for clock.now in (400, 401):
        assert not deadline.near(1.0)
    clock.now = 990.0  # 1.5 * (1 + 1) s before the end there is time for another step of one second
    deadline.pause()
    assert not deadline.near(1.0)
    assert not deadline.over


def test_a_measured_checkpoint_replaces_the_guess() -> None:
    clock = Clock()
    for save_s, near in ((None, True), (59.0, False), (67.0, True)):
        clock.now = 0.0
        assert Deadline(100.0, "", guessed_save_s=67.0, clock=clock).near(save_s) is near


def test_a_checkpoint_that_is_being_written_counts_besides() -> None:
    for save_s, near in ((33.0, False), (34.0, True)):  # 1.5 times two of them are 99 and 102 s
        deadline = Deadline(100.0, "", clock=Clock())
        assert not deadline.near(save_s)
        assert deadline.near(save_s, writing=True) is near


def test_an_evaluation_that_this_start_has_not_met_yet_has_to_fit() -> None:
    for look_s, near in ((65.0, False), (66.0, True)):  # 1.5 times that and a checkpoint of 1 s: 99 and 100.5 s
        deadline = Deadline(100.0, "", clock=Clock())
        assert not deadline.near(1.0)
        assert deadline.near(1.0, look_s=look_s) is near


def test_a_start_that_has_nothing_to_lose_tries_an_evaluation_that_may_not_fit() -> None:
    clock = Clock()
    deadline = Deadline(100.0, "", clock=clock)
    assert not deadline.near(1.0, look_s=1000.0)
    clock.now = 99.0  # it took so long, and 99 + 1.5 * 1 > 100
    assert deadline.near(1.0)
    assert Deadline(1.0, "", clock=clock).near(1.0, look_s=1000.0)  # the checkpoint has to fit all the same


def test_starts_that_are_short_for_an_evaluation_get_past_it_all_the_same(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Look, "evaluate", lambda look: (time.sleep(0.2), {"val/loss": 3.0})[1])
    values["sample"]["prompts"] = []
    values["train"]["steps"] = 10
    train(parse_config(values))
    values["train"]["steps"] = 12
    values["run"]["stop_after"] = "1d"
    monkeypatch.setattr(TrainState, "from_ledger", lambda ledger, read=TrainState.from_ledger: slower(read(ledger)))
    cfg = parse_config(values)
    assert not train(cfg)  # one step, since the last two are followed by an evaluation of two days
    assert train(cfg)


def slower(state: TrainState) -> TrainState:
    state.look_s = 2 * 86_400.0
    return state


def test_the_time_of_a_step_with_its_evaluation_is_not_counted_twice() -> None:
    clock = Clock()
    deadline = Deadline(100.0, "", clock=clock)
    for clock.now in (0, 10, 30):  # a step of 20 s; with 1.5 times 40 s and a checkpoint of 1 s it is 91.5
        assert not deadline.near(1.0, look_s=40.0)
    clock.now = 39.0  # 100.5
    assert deadline.near(1.0, look_s=40.0)


def test_a_later_start_knows_before_an_evaluation_how_long_it_takes(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(look: Look) -> dict[str, float]:
        time.sleep(0.2)
        return {"val/loss": 3.0}

    told: list[float] = []
    monkeypatch.setattr(Look, "evaluate", slow)
    values["sample"]["prompts"] = []
    values["train"]["steps"] = 10
    train(parse_config(values))
    monkeypatch.setattr(Deadline, "near", lambda deadline, save_s, *, writing, look_s: bool(told.append(look_s)))
    values["train"]["steps"] = 12
    train(parse_config(values))
    assert told == [0.0, pytest.approx(0.2, abs=0.15)]  # the last step's alone: a start may end before that


@pytest.mark.parametrize(
    ("received", "kept", "words"),
    [
        (None, True, "a rank was asked to stop: stopped at step 5 with a checkpoint; the same command"),
        (signal.SIGTERM, False, "stopped at step 5; the same command"),  # who has sent it knows why
    ],
)
def test_a_stop_that_another_rank_was_asked_for_is_not_laid_to_the_deadline(
    monkeypatch: pytest.MonkeyPatch, received: signal.Signals | None, kept: bool, words: str
) -> None:
    said: list[str] = []
    start: Any = SimpleNamespace(
        cfg=None,
        engine=SimpleNamespace(say=said.append),
        corpora=SimpleNamespace(fingerprint=""),
        store=SimpleNamespace(has_checkpoint=lambda: kept),
        stop=SimpleNamespace(received=received),
        deadline=Deadline(time.monotonic() + 86_400, "run.stop_after=1d is nearly over"),
    )
    plan = SimpleNamespace(total_steps=100)
    monkeypatch.setattr(run, "resume", lambda *args: (SimpleNamespace(step=5), plan))
    monkeypatch.setattr(run, "_live", lambda *args: False)
    assert not run._go_on(start, plan, None)  # type: ignore[arg-type]
    assert said[0].startswith(words)


def test_without_an_end_it_is_never_near() -> None:
    assert not Deadline().near(1e9)


@pytest.mark.parametrize(("text", "seconds"), [("45s", 45), ("90m", 5400), ("2.5h", 9000), ("1d", 86400)])
def test_a_time_has_its_unit(values: dict[str, Any], text: str, seconds: float) -> None:
    values["run"]["stop_after"] = text
    assert parse_config(values).run.stop_after_s == seconds


@pytest.mark.parametrize("text", ["90", "m", "90 m", "-1h"])
def test_a_time_without_a_unit_is_refused(values: dict[str, Any], text: str) -> None:
    values["run"]["stop_after"] = text
    with pytest.raises(ConfigError, match=r"run.stop_after: .* is no time; give a number with its unit, such as 45s"):
        parse_config(values)


def test_the_nearer_of_two_ends_counts(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    values["run"]["stop_after"] = "100s"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1050")
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: 50.0)
    deadline = open_deadline(parse_config(values), 10**9, started=50.0)
    assert deadline.end == 50.0 + 50.0 - 15.0
    assert deadline.reason.startswith("the job ends at ")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "9000")
    deadline = open_deadline(parse_config(values), 10**9, started=50.0)
    assert (deadline.end, deadline.reason) == (150.0, "run.stop_after=100s is nearly over")


def test_before_a_checkpoint_was_timed_it_is_given_the_time_of_a_slow_disk(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    values["run"]["stop_after"] = "1000s"
    # weights and two moments of 10^9 parameters are 12 GB: 120 s at 100 MB/s, and half as long again
    for gone_s, near in ((800.0, False), (830.0, True)):
        deadline = open_deadline(parse_config(values), 10**9, started=time.monotonic() - gone_s)
        assert deadline.near(None) is near


def test_a_time_of_day_that_jumps_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    deadline, now = Deadline(time.monotonic() + 3600), time.time
    for jump_s in (0, 86_400, -86_400):
        monkeypatch.setattr(time, "time", lambda jump_s=jump_s: now() + jump_s)
        assert not deadline.near(1.0)


def test_an_older_slurm_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(1_700_000_000))
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "JobId=$3 StartTime=x EndTime={end} Deadline=N/A"\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert slurm.job_end() == 1_700_000_000.0
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")  # whose last task has the array's own number
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\n[ "$3" = 7_2 ] && echo EndTime={end}\n')
    assert slurm.job_end() == 1_700_000_000.0
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho EndTime=Unknown\n")
    assert slurm.job_end() is None
    (tmp_path / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    assert slurm.job_end() is None


def test_a_scheduler_that_does_not_answer_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*args: Any, timeout: float, **kwargs: Any) -> Any:
        raise subprocess.TimeoutExpired("scontrol", timeout)

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    monkeypatch.setattr(subprocess, "run", silent)
    assert slurm.job_end() is None


def test_outside_slurm_there_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert slurm.job_end() is None
    assert slurm.job_name() is None


def test_a_run_whose_time_is_over_stops_with_a_checkpoint_and_goes_on(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    began = 0.0

    def noted(cfg: Config, parameters: int, started: float) -> Deadline:
        nonlocal began
        began = started  # what was imported before is not the run's
        return open_deadline(cfg, parameters, started)

    monkeypatch.setattr(run, "open_deadline", noted)
    values["train"]["steps"] = 100_000
    values["run"]["stop_after"] = "6s"
    values["sample"]["prompts"] = []
    assert not train(parse_config(values))
    assert time.monotonic() - began < 15  # of 100,000 steps, which would take minutes
    said = capsys.readouterr().out
    assert "run.stop_after=6s is nearly over: stopped at step" in said
    last = max(r["step"] for r in read_log(parse_config(values).run.dir / "log.jsonl"))
    assert (parse_config(values).run.dir / "checkpoints" / f"step-{int(last):08d}").is_dir()
    assert not (parse_config(values).run.dir / "done").exists()


def test_a_run_leaves_itself_the_time_that_its_checkpoints_took(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float | None] = []

    def near(deadline: Deadline, save_s: float | None, **what: Any) -> bool:
        asked.append(save_s)
        return False

    monkeypatch.setattr(Deadline, "near", near)
    values["train"]["steps"], values["checkpoint"]["every_steps"], values["sample"]["prompts"] = 5, 2, []
    cfg = parse_config(values)
    assert train(cfg)
    took = [r["checkpoint/durable_s"] for r in read_log(cfg.run.dir / "log.jsonl") if "checkpoint/step" in r]
    assert asked[:2] == [None, None]
    assert asked[4] == took[0]  # before the checkpoint of step 4 began, that of step 2 was safe

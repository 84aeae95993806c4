"""What torch's profiler saw of a few steps."""

import gzip
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.errors import ConfigError, TrainingError
from gptscale.tracking.jsonl import read_log
from gptscale.training import loop, profile
from gptscale.training.deadline import Deadline
from gptscale.training.profile import StepProfile
from gptscale.training.run import train


def run_of(values: dict[str, Any], folder: Path, **settings: Any) -> Config:
    few = {"sample": {"prompts": []}, "eval": {"every_steps": None, "sequences": 1, "train_sequences": None}}
    return parse_config({**values, **few, "run": {"dir": str(folder)}, "train": {**values["train"], **settings}})


def events(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path) as file:
        return json.load(file)["traceEvents"]  # type: ignore[no-any-return]


def count(found: list[dict[str, Any]], name: str) -> int:
    """How often something began on the CPU, by the beginning of its name."""
    return sum(event["name"].startswith(name) for event in found if event.get("cat") in ("cpu_op", "user_annotation"))


def losses(cfg: Config) -> list[float]:
    return [record["train/loss"] for record in read_log(cfg.run.dir / "log.jsonl") if "train/loss" in record]


def test_three_steps_are_watched_and_the_run_is_the_same(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = run_of(values, tmp_path / "watched", steps=7, log_every_steps=1, profile_at_step=3)
    assert train(watched)
    path = watched.run.dir / "profile" / "step-00000003.json.gz"
    assert f"profile in {path}, for https://ui.perfetto.dev" in capsys.readouterr().out
    found = events(path)
    assert count(found, "ProfilerStep") == 3
    assert count(found, "Optimizer.step") == 3
    assert any("Input Dims" in event.get("args", {}) for event in found)
    plain = run_of(values, tmp_path / "plain", steps=7, log_every_steps=1)
    assert train(plain)
    assert losses(watched) == losses(plain)
    assert not (plain.run.dir / "profile").exists()


def test_a_run_that_ends_before_says_so(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(run_of(values, tmp_path / "run", steps=5, profile_at_step=4))
    assert "no profile: train.profile_at_step=4 needs the steps from 3 to 6" in capsys.readouterr().out
    assert not (tmp_path / "run" / "profile").exists()


def test_a_start_that_begins_later_says_so_unless_there_is_a_profile(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(run_of(values, tmp_path / "run", steps=4))
    assert train(run_of(values, tmp_path / "run", steps=8, profile_at_step=5))
    assert "no profile: train.profile_at_step=5 needs the steps from 4 to 7" in capsys.readouterr().out
    assert train(run_of(values, tmp_path / "run", steps=12, profile_at_step=10))
    assert train(run_of(values, tmp_path / "run", steps=14, profile_at_step=10))
    assert "no profile" not in capsys.readouterr().out


def test_writing_a_profile_is_no_training_time(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = StepProfile._write

    def slowly(*args: Any) -> None:
        time.sleep(3)
        write(*args)

    longest = []
    near = Deadline.near

    def asked(deadline: Deadline, save_s: float | None, **what: Any) -> bool:
        answer = near(deadline, save_s, **what)
        longest.append(deadline._longest_s)
        return answer

    monkeypatch.setattr(StepProfile, "_write", slowly)
    monkeypatch.setattr(Deadline, "near", asked)
    cfg = run_of(values, tmp_path / "run", steps=7, log_every_steps=1, profile_at_step=3)
    assert train(cfg)
    assert max(record["time_s"] for record in read_log(cfg.run.dir / "log.jsonl")) < 3
    assert max(longest) < 3


def breaks(path: str) -> None:
    raise RuntimeError("kineto is out of order")


@pytest.mark.parametrize(
    ("export", "said"),
    [
        (breaks, "kineto is out of order"),
        (lambda path: Path(path).touch(), "it is not whole; is the disk full?"),
        (lambda path: Path(path).write_text('{"traceEvents": [{"na'), "it is not whole; is the disk full?"),
        (lambda path: None, "No such file"),
    ],
)
def test_a_profile_that_cannot_be_written_ends_no_run(
    values: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    export: Callable[[str], None],
    said: str,
) -> None:
    monkeypatch.setattr(profile.profile, "export_chrome_trace", lambda found, path: export(path))
    cfg = run_of(values, tmp_path / "run", steps=6, profile_at_step=2)
    assert train(cfg)
    assert re.search(f"WARNING: no profile: .*step-00000002.json.gz could not be written: .*{said}", out(capsys))
    assert len(losses(cfg)) == 6
    assert not list((tmp_path / "run" / "profile").iterdir())


def out(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", [TrainingError, KeyboardInterrupt])
def test_a_failure_in_the_middle_leaves_no_profiler_behind(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    step, calls = loop.train_step, 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise kind("stop")
        return step(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", failing)
    with pytest.raises(kind):
        train(run_of(values, tmp_path / "run", steps=7, profile_at_step=3))
    monkeypatch.setattr(loop, "train_step", step)
    assert not (tmp_path / "run" / "profile").exists()
    cfg = run_of(values, tmp_path / "again", steps=7, profile_at_step=3)
    assert train(cfg)
    assert count(events(cfg.run.dir / "profile" / "step-00000003.json.gz"), "Optimizer.step") == 3


def test_the_first_step_cannot_be_watched(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train.profile_at_step"):
        run_of(values, tmp_path, profile_at_step=1)

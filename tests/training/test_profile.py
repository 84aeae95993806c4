"""What torch's profiler saw of a few steps."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.errors import ConfigError
from gptscale.tracking.jsonl import read_log
from gptscale.training import profile
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


@pytest.mark.parametrize(("steps", "number"), [(5, 2), (3, 0)])
def test_a_run_that_ends_before_leaves_what_was_watched(
    values: dict[str, Any], tmp_path: Path, steps: int, number: int
) -> None:
    cfg = run_of(values, tmp_path / "run", steps=steps, profile_at_step=4)
    assert train(cfg)
    path = cfg.run.dir / "profile" / "step-00000004.json.gz"
    assert (count(events(path), "Optimizer.step") if path.exists() else 0) == number


def test_a_start_that_begins_later_watches_nothing(values: dict[str, Any], tmp_path: Path) -> None:
    assert train(run_of(values, tmp_path / "run", steps=4))
    assert train(run_of(values, tmp_path / "run", steps=8, profile_at_step=5))
    assert not (tmp_path / "run" / "profile").exists()


def test_a_profile_that_cannot_be_written_ends_no_run(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "FOLDER", "config.yaml")  # a file
    cfg = run_of(values, tmp_path / "run", steps=6, profile_at_step=2)
    assert train(cfg)
    assert "WARNING: no profile: " in capsys.readouterr().out
    assert len(losses(cfg)) == 6


def test_the_first_step_cannot_be_watched(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train.profile_at_step"):
        run_of(values, tmp_path, profile_at_step=1)

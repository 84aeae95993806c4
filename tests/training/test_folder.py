"""Whose the run folder is, and what a start finds there of earlier ones."""

from pathlib import Path
from typing import Any

import pytest

from gptscale.config.load import parse_config
from gptscale.errors import TrainingError
from gptscale.tracking.jsonl import read_log, read_samples
from gptscale.training import loop
from gptscale.training.folder import mark_done, take_alone
from gptscale.training.run import train


def test_an_older_start_marks_no_run_as_done(tmp_path: Path) -> None:
    older = take_alone(tmp_path)
    mark_done(tmp_path, older, 4)
    take_alone(tmp_path)
    with pytest.raises(TrainingError, match=r"run.dir=.* was taken over by a later start"):
        mark_done(tmp_path, older, 5)
    assert (tmp_path / "done").read_text() == "4\n"


def test_a_start_that_ended_before_its_first_checkpoint_leaves_no_record(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any, **options: Any) -> Any:
        raise RuntimeError("killed")

    values["train"]["steps"] = 2
    cfg = parse_config(values)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(cfg)
    assert [r["step"] for r in read_log(cfg.run.dir / "log.jsonl")] == [0]
    assert train(cfg)
    assert [r["step"] for r in read_log(cfg.run.dir / "log.jsonl") if "val/loss" in r] == [0, 2]
    assert [sample["step"] for sample in read_samples(cfg.run.dir / "samples.jsonl")] == [0, 2]

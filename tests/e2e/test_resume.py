"""A run that is killed and resumed is the run that never stopped."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gptscale.checkpoint.model import load_model
from gptscale.config.load import dump_config, parse_config
from gptscale.config.schema import Config
from gptscale.tracking.jsonl import read_log
from gptscale.training.run import train

pytestmark = pytest.mark.e2e

TRAIN_AND_SIGNAL = """
import os, sys
from gptscale.cli.main import main
from gptscale.training import loop
from gptscale.training.step import train_step

def signal_itself(*args, step, **kwargs):
    if step == {step}:
        os.kill(os.getpid(), {signal})
    return train_step(*args, step=step, **kwargs)

loop.train_step = signal_itself
sys.argv = ["gptscale", "train", {config!r}]
main()
"""


def in_folder(values: dict[str, Any], run_dir: Path, **train: Any) -> Config:
    changed = {**values, "run": {**values["run"], "dir": str(run_dir)}, "train": {**values["train"], **train}}
    return parse_config(changed)


def train_until(cfg: Config, step: int, number: int) -> subprocess.CompletedProcess[str]:
    """Train in a process of its own, which gets a signal when `step` updates are done."""
    path = cfg.run.dir.with_suffix(".yaml")
    path.write_text(dump_config(cfg))
    code = TRAIN_AND_SIGNAL.format(step=step, signal=int(number), config=str(path))
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)


def without_time(cfg: Config) -> list[dict[str, float]]:
    """The record but for times, and for what says when a checkpoint was safe."""
    timed = {"time_s", "train/tokens_per_s", "train/tokens_per_s_per_gpu", "train/mfu"}
    records = [r for r in read_log(cfg.run.dir / "log.jsonl") if "checkpoint/step" not in r]
    return [
        {k: v for k, v in record.items() if k not in timed and not k.startswith(("time/", "memory/"))}
        for record in records
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_killed_at_step_37_of_100_ends_like_one_that_was_not(
    tmp_path: Path, values: dict[str, Any], precision: str
) -> None:
    assert values["model"]["drop_rate"] > 0
    whole = in_folder(values, tmp_path / "whole", steps=100, precision=precision)
    killed = in_folder(values, tmp_path / "killed", steps=100, precision=precision)
    assert train(whole)

    assert train_until(killed, 37, signal.SIGKILL).returncode == -signal.SIGKILL
    assert without_time(killed)[-1]["step"] == 37
    assert train(killed)

    assert without_time(killed) == without_time(whole)
    assert len([r for r in without_time(killed) if "train/loss" in r]) == 100
    a, b = load_model(whole.run.dir)[0], load_model(killed.run.dir)[0]
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    samples = [(folder / "samples.jsonl").read_text() for folder in (whole.run.dir, killed.run.dir)]
    assert samples[0] == samples[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_signal_ends_with_a_checkpoint_within_the_log_interval(
    tmp_path: Path, values: dict[str, Any], number: signal.Signals
) -> None:
    whole = in_folder(values, tmp_path / "whole", log_every_steps=5)
    stopped = in_folder(values, tmp_path / "stopped", log_every_steps=5)
    assert train(whole)
    done = train_until(stopped, 12, number)
    assert done.returncode == (130 if number == signal.SIGINT else 0), done.stderr
    if number == signal.SIGINT:
        assert "stopping with a checkpoint after this step; Ctrl-C again stops at once" in done.stderr
        assert "interrupted; the same command goes on from the last checkpoint" in done.stderr
    assert "stopped at step 13 with a checkpoint; the same command goes on from there" in done.stdout
    assert (stopped.run.dir / "checkpoints" / "step-00000013").is_dir()
    assert train(stopped)
    losses = [[r["train/loss"] for r in without_time(cfg) if "train/loss" in r] for cfg in (whole, stopped)]
    assert losses[0] == losses[1]
    assert without_time(whole)[-1] == without_time(stopped)[-1]


def test_a_muon_run_resumes_bit_for_bit(tmp_path: Path, values: dict[str, Any]) -> None:
    values["optim"]["name"] = "muon"
    whole, cut = in_folder(values, tmp_path / "whole"), in_folder(values, tmp_path / "cut")
    assert train(whole)
    train_until(cut, 13, signal.SIGKILL)
    assert train(cut)
    assert without_time(whole) == without_time(cut)


def test_a_finished_run_started_again_changes_nothing(
    tmp_path: Path, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = in_folder(values, tmp_path / "run", steps=3)
    assert train(cfg)
    before = {p: p.read_bytes() for p in cfg.run.dir.rglob("*") if p.is_file()}
    assert train(cfg)
    (cfg.run.dir / "fence" / "000002").unlink()  # a start is a start
    assert "is finished: step 3 of 3" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in cfg.run.dir.rglob("*") if p.is_file()} == before


def test_a_run_is_marked_as_done_at_its_last_step_and_no_longer_when_it_is_made_longer(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    cfg = in_folder(values, tmp_path / "run", steps=4)
    assert train(cfg)
    assert (cfg.run.dir / "done").read_text() == "4\n"
    longer = in_folder(values, tmp_path / "run", steps=30)
    train_until(longer, 6, signal.SIGTERM)
    assert not (cfg.run.dir / "done").exists()
    assert train(longer)
    assert (cfg.run.dir / "done").read_text() == "30\n"
    (cfg.run.dir / "done").unlink()
    assert train(longer)
    assert (cfg.run.dir / "done").read_text() == "30\n"


def test_a_finished_run_can_be_made_longer(tmp_path: Path, values: dict[str, Any]) -> None:
    assert train(in_folder(values, tmp_path / "run", steps=5))
    longer = in_folder(values, tmp_path / "run", steps=8)
    assert train(longer)
    assert [r["step"] for r in without_time(longer) if "train/loss" in r] == [1, 2, 3, 4, 5, 6, 7, 8]

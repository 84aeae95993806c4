"""A run that was thought lost wakes up when another process has gone on with it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gptscale.config.load import dump_config
from gptscale.config.schema import Config
from gptscale.training.run import train
from tests.e2e.test_resume import in_folder, without_time

pytestmark = pytest.mark.e2e


@contextmanager
def training(cfg: Config) -> Iterator[subprocess.Popen[str]]:
    path = cfg.run.dir.with_suffix(".yaml")
    path.write_text(dump_config(cfg))
    command = [sys.executable, "-m", "gptscale", "train", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def await_checkpoint(run_dir: Path) -> None:
    until = time.monotonic() + 60
    while not list((run_dir / "checkpoints").glob("step-*")):
        assert time.monotonic() < until, "no checkpoint"
        time.sleep(0.01)


def content(run_dir: Path) -> dict[Path, bytes]:
    """All files but hidden ones: a process may be stopped between the two halves of its look at the fence."""
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if not any(p.startswith(".") for p in path.parts)}


def test_nothing_of_an_older_start_is_accepted(tmp_path: Path, values: dict[str, Any]) -> None:
    values["wandb"] = {"mode": "disabled"}
    whole, shared = in_folder(values, tmp_path / "whole", steps=80), in_folder(values, tmp_path / "shared", steps=80)
    assert train(whole)
    with training(shared) as older:
        await_checkpoint(shared.run.dir)
        os.kill(older.pid, signal.SIGSTOP)
        assert train(shared)
        before = content(shared.run.dir)
        os.kill(older.pid, signal.SIGCONT)
        out, err = older.communicate(timeout=60)
    assert older.returncode == 2, out + err
    assert [line for line in err.splitlines() if "gptscale:" in line] == [
        line for line in err.splitlines() if "was taken over by a later start (no job, process" in line
    ]
    assert err.count("gptscale:") == 1
    assert content(shared.run.dir) == before
    assert without_time(shared) == without_time(whole)
    assert (shared.run.dir / "fence" / "000002").is_file()

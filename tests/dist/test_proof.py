"""gptscale prove-resume, as a user runs it, under engines and across them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptscale.config.load import dump_config
from tests.dist.conftest import ROOT, changed

pytestmark = pytest.mark.dist
LONG = pytest.mark.long  # another way of what the others show


def prove(values: dict[str, Any], folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "config.yaml").write_text(dump_config(changed(values, folder)))
    command = [sys.executable, "-m", "gptscale", "prove-resume", str(folder / "config.yaml"), *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=170, env=env)


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        (["--engine-before=none"], "bit-exact: every loss and gradient norm of 30 steps is the same, and so are all weights"),
        pytest.param(["--engine-before=zero2", "train.precision=bf16"], "bit-exact: every loss and gradient norm of 30 steps", marks=LONG),
        pytest.param(["--engine-before=ddp", "--engine-after=zero3"], None, marks=LONG),
        pytest.param(["--engine-before=fsdp2", "--ranks-after=1"], "1 instead of 2 ranks add the same numbers in another order", marks=LONG),
    ],
)  # fmt: skip
def test_a_resume_is_proved(
    plain_values: dict[str, Any], tmp_path: Path, options: list[str], verdict: str | None
) -> None:
    done = prove(plain_values, tmp_path, "--steps", "30", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert verdict in last if verdict else last.startswith(("as promised", "bit-exact"))
    rows = [line.split() for line in done.stdout.splitlines() if line.split()[0].isdigit()]
    assert [int(row[0]) for row in rows] == list(range(1, 31))
    assert "        -- checkpoint; killed after step " in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]  # nothing is left, and run.dir untouched


def test_a_resume_that_goes_wrong_is_not_proved(plain_values: dict[str, Any], tmp_path: Path) -> None:
    # The state of the run is not all of it where a user's module changes what is computed in every process.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if sys.argv[0] == '-c' and os.path.exists(os.environ['KILLED'] + '/checkpoints/step-00000015'):\n"
        "    import gptscale.training.schedule as s\n"
        "    right = s.lr_at\n"
        "    s.lr_at = lambda *a: 1.01 * right(*a)\n"
    )
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(changed(plain_values, tmp_path)))
    killed = tmp_path / "run.prove-resume" / "killed"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1", "KILLED": str(killed)}
    command = [sys.executable, "-m", "gptscale", "prove-resume", str(config), "--steps", "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, env=env)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "NOT PROVED: differs by " in done.stdout
    assert "everything is kept in " in done.stdout
    assert killed.is_dir()


def test_a_run_that_fails_says_why(plain_values: dict[str, Any], tmp_path: Path) -> None:
    done = prove(plain_values, tmp_path, "train.precision=bf16-sharded")
    assert done.returncode == 2
    assert "rank 0 ended with 2: train.precision=bf16-sharded needs an engine that shards" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_of_somebody_else_is_left_alone(plain_values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    done = prove(plain_values, tmp_path, "--scratch", str(tmp_path / "mine"))
    assert done.returncode == 2
    assert "mine is not empty; choose a new folder" in done.stderr
    assert (tmp_path / "mine" / "thesis.txt").exists()

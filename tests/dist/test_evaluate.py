"""An evaluation under a launcher: the ranks share the windows and find the same number, to the last bit."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.dist.conftest import ROOT, Done, torchrun

pytestmark = pytest.mark.dist


def evaluated(launcher: list[str], *args: object) -> Any:
    command = [*launcher, "-m", "gptscale", "evaluate", *map(str, args), "--json"]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_three_ranks_find_what_one_finds(trace: Callable[[str, int], Done], tmp_path: Path) -> None:
    run = trace("none", 1).cfg.run.dir
    lines = [f'{{"context": "the", "endings": ["cat", "dog {n}", "hill"], "label": {n % 3}}}' for n in range(7)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    args = (run, "--stride", 8, "--cloze", tmp_path / "q.jsonl")
    assert evaluated(torchrun(3), *args) == evaluated([sys.executable], *args)


AS_MACHINES = """
import os, runpy, sys
os.chdir("machine" + os.environ["RANK"])
runpy.run_module("gptscale", run_name="__main__", alter_sys=True)
"""


def on_machines(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Evaluate on two ranks that each have a folder of their own."""
    (folder / "as_machines.py").write_text(AS_MACHINES)
    command = [*torchrun(2), str(folder / "as_machines.py"), "evaluate", *args]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, capture_output=True, text=True, timeout=170, env=env, cwd=folder)


def test_ranks_that_see_other_files_evaluate_one_checkpoint_or_say_why_not(
    trace: Callable[[str, int], Done], tmp_path: Path
) -> None:
    run = trace("none", 1).cfg.run.dir
    for machine in ("machine0", "machine1"):
        shutil.copytree(run, tmp_path / machine / "run")
    older = sorted((tmp_path / "machine0/run/checkpoints").glob("step-*"))[-2]
    newest = sorted((tmp_path / "machine0/run/checkpoints").glob("step-*"))[-1].name
    shutil.rmtree(tmp_path / "machine0/run/checkpoints" / newest)
    done = on_machines(tmp_path, "run", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["results"] == evaluated([sys.executable], older)["results"]
    shutil.rmtree(tmp_path / "machine1/run/checkpoints" / older.name)
    (tmp_path / "machine0/q.jsonl").write_text('{"context": "a", "endings": ["b"], "label": 0}')
    for args, message in (
        (("run",), f"{older.name}/part-00000-of-00001.safetensors is missing"),
        (("run", "--cloze", "q.jsonl"), "q.jsonl cannot be read"),
    ):
        done = on_machines(tmp_path, *args)
        assert done.returncode != 0
        (line,) = [line for line in done.stderr.splitlines() if "gptscale: " in line]
        assert message in line
        assert "RuntimeError" not in done.stderr  # the launcher has a traceback of its own

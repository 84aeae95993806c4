"""An evaluation under a launcher: the ranks share the windows and find the same number, to the last bit."""

import json
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

"""Twenty SIGKILLs at random moments: the run finishes by itself, and nobody can tell from its record."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from gptscale.config.load import dump_config
from gptscale.config.schema import Config
from tests.dist.conftest import ROOT, Done, changed, launch, torchrun

pytestmark = [pytest.mark.dist, pytest.mark.long]

KILLS, STEPS = 20, 1_000  # lives of up to 1.5 s do 20 to 50 steps each, on a fast machine more
ENDS_S = 400.0


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def lives(cfg: Config) -> int:
    """How many starts have taken the run folder."""
    folder = cfg.run.dir / "fence"
    return sum(name.isdigit() for name in os.listdir(folder)) if folder.is_dir() else 0


def kill_at_random(agent: "subprocess.Popen[str]", cfg: Config) -> int:
    """Kill a rank of each life a moment after it has taken the run folder; how many were killed."""
    rng, until, kills = random.Random(3), time.monotonic() + ENDS_S, 0
    while kills < KILLS and agent.poll() is None:
        assert time.monotonic() < until, f"{kills} kills, {lives(cfg)} lives"
        time.sleep(0.01)
        if lives(cfg) <= kills:
            continue
        time.sleep(rng.uniform(0.0, 1.5))
        if ranks := children(agent.pid):  # else the run is over
            os.kill(rng.choice(ranks), signal.SIGKILL)
            kills += 1
    return kills


def test_twenty_kills_leave_no_trace(plain_values: dict[str, Any], tmp_path: Path) -> None:
    sections: dict[str, dict[str, Any]] = {
        "train": {"steps": STEPS, "tokens_per_step": 128},
        "sample": {"prompts": []},
        "checkpoint": {"every_steps": 5, "keep": 2},
    }
    whole = launch(changed(plain_values, tmp_path / "whole", **sections), torchrun(2), {}, ["-m", "gptscale"])
    assert whole.returncode == 0, whole.output
    cfg = changed(plain_values, tmp_path / "killed", **sections)
    cfg.run.dir.parent.mkdir(parents=True)
    (cfg.run.dir.parent / "config.yaml").write_text(dump_config(cfg))
    command = [*torchrun(2), f"--max-restarts={KILLS + 5}", "--monitor-interval=0.1", "-m", "gptscale"]
    with (tmp_path / "output.txt").open("w") as output:
        agent = subprocess.Popen(
            [*command, "train", str(cfg.run.dir.parent / "config.yaml")],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert kill_at_random(agent, cfg) == KILLS
            assert agent.wait(ENDS_S) == 0, (tmp_path / "output.txt").read_text()[-4000:]
        finally:
            agent.kill()
            agent.wait()
    killed = Done(cfg, 0, "")
    assert (cfg.run.dir / "done").read_text() == f"{STEPS}\n"
    for measurement in ("train/loss", "train/grad_norm", "val/loss"):
        assert killed.log(measurement) == whole.log(measurement), measurement
    records = [json.loads(line) for line in (cfg.run.dir / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "train/loss" in r] == list(range(1, STEPS + 1))

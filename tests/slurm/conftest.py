"""A SLURM cluster of two nodes on this machine, and jobs on it. Skipped without root or SLURM."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gptscale.config.load import dump_config, parse_config
from gptscale.config.schema import Config
from gptscale.data.prepare import prepare
from gptscale.tracking.jsonl import read_log
from tests.conftest import small_text, small_values

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BIN = Path("/run/gptscale-slurm/bin")
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "ip", "pgrep", "nsenter")
STEPS = 400


def command(*words: str, **options: Any) -> str:
    """Run a command of the cluster and give what it printed."""
    done = subprocess.run([str(BIN / words[0]), *words[1:]], capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Job:
    """A training job in the queue."""

    number: str
    cfg: Config

    @property
    def facts(self) -> dict[str, str]:
        """What `scontrol show job` says."""
        return dict(re.findall(r"(\w+)=(\S*)", command("scontrol", "show", "job", self.number)))

    @property
    def log(self) -> str:
        """What the job has printed in all its starts."""
        path = self.cfg.run.dir.parent / "job.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    def steps(self) -> list[int]:
        """The steps on record."""
        return [int(r["step"]) for r in read_log(self.cfg.run.dir / "log.jsonl") if "train/loss" in r]

    def losses(self) -> list[float]:
        """The losses on record."""
        return [r["train/loss"] for r in read_log(self.cfg.run.dir / "log.jsonl") if "train/loss" in r]

    def await_(self, what: Callable[[], bool], within_s: float) -> None:
        """Wait until something holds."""
        until = time.monotonic() + within_s
        while not what():
            assert time.monotonic() < until, f"{self.facts}\n{self.log[-6000:]}"
            time.sleep(0.5)

    def await_checkpoint(self) -> None:
        """Wait until there is something to go on from."""
        self.await_(lambda: bool(list((self.cfg.run.dir / "checkpoints").glob("step-*"))), 120)

    def await_done(self, within_s: float = 300) -> None:
        """Wait until the run is done, and the job with it."""
        self.await_(lambda: (self.cfg.run.dir / "done").exists() and self.facts["JobState"] == "COMPLETED", within_s)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """The cluster, for as long as its tests run."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"needs {', '.join(missing) or 'root'}")
    start_nodes()
    yield
    subprocess.run([str(HERE / "stop_cluster")], check=True)


def start_nodes() -> None:
    """Bring up the cluster, or what is missing of it."""
    environment = {**os.environ, "LAB_NODES": "2", "LAB_GPUS": "0"}
    done = subprocess.run([str(HERE / "start_cluster")], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of 400 steps, long enough for something to happen to it, on a prepared corpus."""
    folder = tmp_path_factory.mktemp("slurm")
    values = small_values(folder)
    (folder / "text.txt").write_text(small_text())
    prepare(parse_config(values), say=lambda line: None)
    values["train"] |= {"steps": STEPS, "tokens_per_step": 2048, "micro_batch_sequences": 2}
    values["sample"] = {"prompts": []}
    values["eval"] = {"every_steps": None, "sequences": 4, "train_sequences": None}
    values["checkpoint"] = {"every_steps": 20, "keep": 3}
    return values


def submit(values: dict[str, Any], folder: Path, *options: str) -> Job:
    """Put a two-node ZeRO-2 job into the queue."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = parse_config({**values, "run": {**values["run"], "dir": str(folder / "run")}})
    (folder / "config.yaml").write_text(dump_config(cfg))
    settings = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "eth0",
        "ENGINE": "zero2",
    }
    words = ["sbatch", "--parsable", "--nodes=2", "--time=20", f"--output={folder / 'job.txt'}", *options]
    number = command(*words, "launch/slurm/train.sbatch", str(folder / "config.yaml"), cwd=ROOT, env=settings)
    return Job(number.strip(), cfg)


@pytest.fixture(scope="session")
def undisturbed(cluster: None, values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a job to which nothing happens."""
    job = submit(values, tmp_path_factory.mktemp("undisturbed"))
    job.await_done()
    assert job.steps() == list(range(1, STEPS + 1))
    assert job.facts["Restarts"] == "0"
    return job.losses()

"""A SLURM cluster of four nodes on this machine, and jobs on it. Skipped without root or SLURM."""

import fcntl
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
from tests.e2e.test_wandb import merged_log, read_back

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LAB = Path("/run/gptscale-slurm")
LOCK = Path("/run/gptscale-slurm.tests")
NODES = ["g1", "g2", "g3", "g4"]
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "ip", "pgrep", "nsenter", "unshare")
SPACES = ("--pid", "--fork", "--net", "--uts", "--ipc", "--mount")
"""What `unshare` makes for a node; a container's root may not be allowed to."""
PATIENCE_S = 400.0
"""How long a test waits for what comes in seconds on a machine with nothing else to do."""
LONGEST = 400
"""Steps of the undisturbed run; shorter ones have its first losses, since all have one horizon."""
OFFLINE = {"mode": "offline", "project": "slurm"}


def command(*words: str, **options: Any) -> str:
    """Run a command of the cluster and give what it printed."""
    done = subprocess.run(
        [str(LAB / "bin" / words[0]), *words[1:]], capture_output=True, text=True, timeout=PATIENCE_S, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def facts(job: str) -> dict[str, str]:
    """What `scontrol show job` says."""
    return dict(re.findall(r"(\w+)=(\S*)", command("scontrol", "show", "job", job)))


def await_(what: Callable[[], bool], otherwise: Callable[[], str] = str, within_s: float = PATIENCE_S) -> None:
    """Wait until something holds; otherwise is what to show if it does not."""
    until = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < until, otherwise()
        time.sleep(0.2)


@dataclass(frozen=True)
class Job:
    """A training job in the queue."""

    number: str
    cfg: Config

    @property
    def facts(self) -> dict[str, str]:
        """What `scontrol show job` says."""
        return facts(self.number)

    @property
    def nodes(self) -> list[str]:
        """Where it runs; the batch shell and rank 0 are on the first."""
        return command("scontrol", "show", "hostnames", self.facts["NodeList"]).split()

    @property
    def log(self) -> str:
        """What the job has printed in all its starts."""
        path = self.cfg.run.dir.parent / "job.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def checkpoints(self) -> set[str]:
        """The names of the checkpoints that it has left."""
        return {path.name for path in (self.cfg.run.dir / "checkpoints").glob("step-*")}

    @property
    def starts(self) -> int:
        """How many starts have taken the run folder."""
        return len(list((self.cfg.run.dir / "fence").glob("[0-9]*")))

    def steps(self) -> list[int]:
        """The steps on record."""
        return [int(r["step"]) for r in read_log(self.cfg.run.dir / "log.jsonl") if "train/loss" in r]

    def losses(self) -> list[float]:
        """The losses on record."""
        return [r["train/loss"] for r in read_log(self.cfg.run.dir / "log.jsonl") if "train/loss" in r]

    @property
    def wandb_id(self) -> str:
        """What W&B calls the run."""
        return (self.cfg.run.dir / "wandb" / "run-id").read_text()

    def assert_wandb_has_the_log(self) -> None:
        """All starts together left one W&B run, with every step once, as it stands in the log."""
        (path,) = (self.cfg.run.dir / "wandb").rglob("*.wandb")
        assert path.name == f"run-{self.wandb_id}.wandb"
        _, rows = read_back(path)
        assert [row["_step"] for row in rows] == [0, *self.steps()]
        told = [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]
        assert told == merged_log(self.cfg.run.dir)

    def await_(self, what: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
        """Wait until something holds."""
        await_(what, lambda: f"{self.facts}\n{self.log[-6000:]}", within_s)

    def await_checkpoint(self) -> None:
        """Wait until there is something to go on from, or more of it."""
        before = self.checkpoints
        self.await_(lambda: bool(self.checkpoints - before))

    def await_done(self, within_s: float = PATIENCE_S) -> None:
        """Wait until the run is done, and the job with it."""
        self.await_(lambda: self.facts["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL"), within_s)
        assert self.facts["JobState"] == "COMPLETED", self.log[-6000:]
        assert (self.cfg.run.dir / "done").exists(), self.log[-6000:]


@pytest.fixture(scope="session")
def nodes() -> Iterator[None]:
    """The cluster, for as long as its tests run."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"needs {', '.join(missing) or 'root'}")
    if subprocess.run(["unshare", *SPACES, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs a root that may make namespaces")
    with LOCK.open("w") as lock:  # another run of them on this machine ends first
        fcntl.flock(lock, fcntl.LOCK_EX)
        start_nodes()
        yield
        subprocess.run([str(HERE / "stop_cluster")], check=True)


@pytest.fixture
def cluster(nodes: None) -> Iterator[None]:
    """The cluster, with all nodes and no job but those of the test."""
    start_nodes()
    yield
    command("scancel", "--user=root")
    start_nodes()
    await_(lambda: not command("squeue", "--noheader"), lambda: command("squeue"))


def start_nodes() -> None:
    """Bring up the cluster, or what is missing of it."""
    environment = {**os.environ, "LAB_NODES": str(len(NODES)), "LAB_GPUS": "0"}
    done = subprocess.run(
        [str(HERE / "start_cluster")], capture_output=True, text=True, timeout=PATIENCE_S, env=environment
    )
    assert done.returncode == 0, done.stderr


def power_off(node: str) -> None:
    """End a node with everything on it, as if its plug was pulled."""
    subprocess.run(["kill", "-9", (LAB / "run" / f"{node}.pid").read_text().split()[0]], check=True)


def settings(**more: str) -> dict[str, str]:
    """The environment that a job is submitted from."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="session")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run on a prepared corpus, long enough for something to happen to it."""
    folder = tmp_path_factory.mktemp("slurm")
    values = small_values(folder)
    (folder / "text.txt").write_text(small_text())
    prepare(parse_config(values), say=lambda line: None)
    values["optim"]["decay_steps"] = LONGEST
    values["sample"] = {"prompts": []}
    values["eval"] = {"every_steps": None, "sequences": 4, "train_sequences": None}
    values["checkpoint"] = {"every_steps": 10, "keep": 3}
    return values


def submit(
    values: dict[str, Any], folder: Path, *options: str, engine: str = "zero2", steps: int = 60, step_s: float = 0.25
) -> Job:
    """Put a job into the queue, on two nodes unless the options say otherwise; its steps take a given time."""
    folder.mkdir(parents=True, exist_ok=True)
    run, train = {**values["run"], "dir": str(folder / "run")}, {**values["train"], "steps": steps}
    cfg = parse_config({**values, "run": run, "train": train})
    (folder / "config.yaml").write_text(dump_config(cfg))
    interpreter = folder / "paced"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "paced.py"} {step_s} "$@"\n')
    interpreter.chmod(0o755)
    environment = settings(GLOO_SOCKET_IFNAME="eth0", ENGINE=engine, PYTHON_EXEC=str(interpreter))
    words = ["sbatch", "--parsable", "--nodes=2", "--time=20", f"--output={folder / 'job.txt'}", *options]
    number = command(*words, "launch/slurm/train.sbatch", str(folder / "config.yaml"), cwd=ROOT, env=environment)
    return Job(number.strip(), cfg)


@pytest.fixture(scope="session")
def undisturbed(nodes: None, values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job to which nothing happens."""
    job = submit(values, tmp_path_factory.mktemp("undisturbed"), steps=LONGEST, step_s=0.0)
    job.await_done()
    assert job.steps() == list(range(1, LONGEST + 1))
    assert job.facts["Restarts"] == "0"
    return job

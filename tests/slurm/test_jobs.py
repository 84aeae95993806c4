"""A two-node ZeRO-2 job survives what a cluster does to it, and ends as if nothing had happened."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.conftest import STEPS, Job, command, start_nodes, submit

pytestmark = pytest.mark.slurm


def assert_undisturbed(job: Job, undisturbed: list[float]) -> None:
    assert job.steps() == list(range(1, STEPS + 1))
    assert job.losses() == undisturbed


def test_a_chain_of_time_limits_ends_like_one_long_job(
    undisturbed: list[float], values: dict[str, Any], tmp_path: Path
) -> None:
    job = submit(values, tmp_path, "--time=2", "--signal=B:USR1@60")
    job.await_done(600)
    assert int(job.facts["Restarts"]) >= 1
    assert "USR1: the end is near" in job.log
    assert_undisturbed(job, undisturbed)


def test_a_notice_by_usr1_reaches_the_ranks_and_not_the_launcher(
    undisturbed: list[float], values: dict[str, Any], tmp_path: Path
) -> None:
    job = submit(values, tmp_path)
    job.await_checkpoint()
    command("scancel", "--batch", "--signal=USR1", job.number)
    job.await_done()
    assert job.facts["Restarts"] == "1"
    assert "srun ended with 0, the run is not done" in job.log
    assert "Traceback" not in job.log
    assert_undisturbed(job, undisturbed)


def test_a_job_that_a_higher_partition_preempts_comes_back(
    undisturbed: list[float], values: dict[str, Any], tmp_path: Path
) -> None:
    job = submit(values, tmp_path)
    job.await_checkpoint()
    command("sbatch", "-p", "urgent", "--nodes=2", "--exclusive", "--time=1", "--output=/dev/null", "--wrap=sleep 5")
    job.await_(lambda: job.facts["Restarts"] == "1", 120)
    job.await_done()
    assert_undisturbed(job, undisturbed)


def test_a_node_that_loses_its_power_costs_a_start(
    undisturbed: list[float], values: dict[str, Any], tmp_path: Path
) -> None:
    job = submit(values, tmp_path)
    job.await_checkpoint()
    subprocess.run(["kill", "-9", Path("/run/gptscale-slurm/run/g2.pid").read_text().split()[0]], check=True)
    job.await_(lambda: job.facts["JobState"] == "PENDING", 120)
    start_nodes()
    job.await_done()
    assert_undisturbed(job, undisturbed)


def test_ranks_that_outlive_their_nodes_daemon_change_nothing(
    undisturbed: list[float], values: dict[str, Any], tmp_path: Path
) -> None:
    job = submit(values, tmp_path)
    job.await_checkpoint()
    ranks = command("on-node", "g1", "pgrep", "-f", "^[^ ]*python.* -m gptscale train").split()
    command("on-node", "g1", "kill", "-STOP", *ranks)
    command("on-node", "g1", "pkill", "-9", "-x", "slurmd")
    job.await_(lambda: job.facts["JobState"] == "PENDING", 120)
    start_nodes()
    job.await_(lambda: len(list((job.cfg.run.dir / "fence").iterdir())) == 2, 180)
    left = command("on-node", "g1", "sh", "-c", f"kill -CONT {' '.join(ranks)} 2>/dev/null; echo sent").strip()
    assert left == "sent"
    job.await_done()
    assert_undisturbed(job, undisturbed)

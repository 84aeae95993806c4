"""A ZeRO-2 job on several nodes survives what a cluster does to it, and ends as if nothing had happened."""

import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.conftest import LONGEST, OFFLINE, Job, command, power_off, submit

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]


def assert_undisturbed(job: Job, undisturbed: Job) -> None:
    steps = job.cfg.train.steps
    assert steps is not None
    assert job.steps() == list(range(1, steps + 1))
    assert job.losses() == undisturbed.losses()[:steps]


def test_a_chain_of_time_limits_ends_like_one_long_job(
    undisturbed: Job, values: dict[str, Any], tmp_path: Path
) -> None:
    # The notice comes at most 90 s after a start: two starts have no time for 120 steps, though the machine be idle.
    job = submit({**values, "wandb": OFFLINE}, tmp_path, "--time=2", "--signal=B:USR1@30", steps=120, step_s=1.5)
    job.await_checkpoint()
    wandb_id = job.wandb_id
    job.await_done(1200)
    assert int(job.facts["Restarts"]) >= 2
    assert job.log.count("USR1: the end is near") == int(job.facts["Restarts"])
    assert_undisturbed(job, undisturbed)
    assert job.wandb_id == wandb_id
    job.assert_wandb_has_the_log()


@pytest.mark.parametrize("notice", [["--batch", "--signal=USR1"], ["--signal=TERM"]], ids=["USR1", "TERM to the steps"])
def test_a_notice_reaches_the_ranks_and_not_the_launcher(
    undisturbed: Job, values: dict[str, Any], tmp_path: Path, notice: list[str]
) -> None:
    job = submit(values, tmp_path)
    job.await_checkpoint()
    command("scancel", *notice, job.number)
    job.await_done()
    assert job.facts["Restarts"] == "1"
    assert "srun ended with 0, the run is not done" in job.log
    assert "Traceback" not in job.log
    assert_undisturbed(job, undisturbed)


def test_a_notice_to_steps_that_have_started_no_rank_yet_costs_a_start(
    undisturbed: Job, values: dict[str, Any], tmp_path: Path
) -> None:
    job = submit(values, tmp_path)
    job.await_(lambda: "train.sbatch: start 0" in job.log)
    time.sleep(1.5)  # the launchers take seconds to load
    command("scancel", "--signal=TERM", job.number)
    job.await_done()
    assert job.facts["Restarts"] == "1"
    assert_undisturbed(job, undisturbed)


def test_a_job_cancelled_after_its_notice_stays_away(values: dict[str, Any], tmp_path: Path) -> None:
    job = submit(values, tmp_path, step_s=3.0)
    job.await_checkpoint()
    command("scancel", "--batch", "--signal=USR1", job.number)
    job.await_(lambda: "the end is near" in job.log)
    command("scancel", job.number)
    job.await_(lambda: "the run is not done" in job.log)
    job.await_(lambda: job.facts["JobState"] == "CANCELLED")
    assert job.facts["Restarts"] == "0"


def test_tasks_of_an_array_are_a_chain_where_none_may_be_requeued(
    undisturbed: Job, values: dict[str, Any], tmp_path: Path
) -> None:
    job = submit(values, tmp_path, "--array=1-3%1", "--no-requeue")
    for task in (1, 2):
        job.await_checkpoint()
        (first, _) = Job(f"{job.number}_{task}", job.cfg).nodes
        command("on-node", first, "pkill", "-USR1", "-f", "[s]lurm_script")  # scancel refuses to tell one task
        job.await_(lambda task=task: job.log.count("not requeued") == task)  # type: ignore[misc]
    job.await_(lambda: "train.sbatch: done" in job.log)
    assert_undisturbed(job, undisturbed)


def test_a_job_that_a_higher_partition_preempts_comes_back(
    undisturbed: Job, values: dict[str, Any], tmp_path: Path
) -> None:
    job = submit(values, tmp_path)
    job.await_checkpoint()
    theirs = ["--partition=urgent", "--nodelist=" + ",".join(job.nodes), "--exclusive", "--time=1"]
    urgent = command("sbatch", "--parsable", *theirs, "--output=/dev/null", "--wrap=sleep 5").strip()
    job.await_(lambda: job.facts["Restarts"] == "1")
    job.await_done()
    assert Job(urgent, job.cfg).facts["JobState"] == "COMPLETED"
    assert_undisturbed(job, undisturbed)


def test_a_node_that_loses_its_power_costs_a_start(undisturbed: Job, values: dict[str, Any], tmp_path: Path) -> None:
    job = submit(values, tmp_path)
    job.await_checkpoint()
    lost = job.nodes[1]
    power_off(lost)
    job.await_(lambda: job.facts["Restarts"] == "1")
    job.await_done()
    assert lost not in job.nodes
    assert_undisturbed(job, undisturbed)


def test_ranks_that_outlive_their_nodes_daemon_change_nothing(
    undisturbed: Job, values: dict[str, Any], tmp_path: Path
) -> None:
    job = submit(values, tmp_path, steps=LONGEST)
    job.await_checkpoint()
    lost, seen = job.nodes, job.checkpoints
    for node in lost:
        command("on-node", node, "pkill", "-9", "-x", "slurmd")
    job.await_(lambda: job.starts == 2)
    job.await_(lambda: not any(ranks_on(node) for node in lost), 60)  # they have met the fence
    job.await_done()
    assert not {*lost} & {*job.nodes}
    (resumed,) = re.findall(r"going on from \S+(step-\d+)", job.log)
    assert resumed > max(seen)  # what they wrote while SLURM took them for dead counts, until the other start began
    left = ("SLURM has put the job back itself, or started it elsewhere; this start ends", "another start has taken")
    assert sum(map(job.log.count, left)) == 1  # by whether the other start had met its ranks by then
    assert_undisturbed(job, undisturbed)


def ranks_on(node: str) -> str:
    return command("on-node", node, "sh", "-c", "pgrep -f '[p]aced.py' || true")


def test_under_hsdp_each_node_has_a_copy_of_the_state(undisturbed: Job, values: dict[str, Any], tmp_path: Path) -> None:
    job = submit(values, tmp_path, engine="hsdp", steps=20)
    job.await_done()
    assert "fp32, engine hsdp" in job.log
    assert job.losses() == pytest.approx(undisturbed.losses()[:20], rel=1e-5)


def test_a_cancelled_run_goes_on_with_fewer_and_with_more_nodes(
    undisturbed: Job, values: dict[str, Any], tmp_path: Path
) -> None:
    job = submit(values, tmp_path)
    for nodes in (1, 2):
        job.await_checkpoint()
        cancel(job)
        job = submit(values, tmp_path, f"--nodes={nodes}")
    job.await_done()
    assert "1 x 2 micro-batches of 4 sequences" in job.log
    assert job.steps() == list(range(1, 61))
    # one rank adds the same numbers in another order than two
    assert job.losses() == pytest.approx(undisturbed.losses()[:60], rel=1e-5)


def cancel(job: Job) -> None:
    command("scancel", job.number)
    job.await_(lambda: job.facts["JobState"] == "CANCELLED")

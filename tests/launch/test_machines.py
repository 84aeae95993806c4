"""The commands for one machine and for several, run on this one."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptscale.config.load import dump_config, parse_config
from gptscale.config.schema import Config
from gptscale.tracking.jsonl import read_log
from tests.launch.test_files import ROOT

MULTINODE = (ROOT / "launch" / "multinode.md").read_text()
LOCAL = str(ROOT / "launch" / "local.sh")


def ssh_commands() -> list[str]:
    """What each machine's shell is given."""
    return [shlex.split(line)[2] for line in MULTINODE.splitlines() if line.startswith("ssh node")]


def kubernetes_job() -> dict[str, Any]:
    (text,) = re.findall(r"```yaml\n(.*?)```", MULTINODE, re.DOTALL)
    return yaml.safe_load(text)["spec"]  # type: ignore[no-any-return]


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.fixture
def cfg(values: dict[str, Any]) -> Config:
    """A run that leaves a checkpoint every other step."""
    values["train"] |= {"steps": 12, "micro_batch_sequences": 2}
    values["sample"]["prompts"] = []
    values["checkpoint"]["every_steps"] = 2
    cfg = parse_config(values)
    cfg.run.dir.with_suffix(".yaml").write_text(dump_config(cfg))
    return cfg


@contextmanager
def machines(cfg: Config, commands: list[str], **environment: str) -> Iterator[list["subprocess.Popen[str]"]]:
    """Shell commands side by side, each as if on a machine of its own, with this interpreter's torchrun in the path."""
    settings = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    settings |= {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **environment}
    started = []
    with ExitStack() as stack:
        for number, command in enumerate(commands):
            output = stack.enter_context(cfg.run.dir.with_suffix(f".output-{number}").open("w"))
            shell = ["bash", "-c", f"exec {command}"]
            process = subprocess.Popen(
                shell, stdout=output, stderr=output, text=True, env={**os.environ, **settings}, start_new_session=True
            )
            stack.callback(process.wait)
            stack.callback(kill_all, process)
            started.append(process)
        yield started


def kill_all(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def said(cfg: Config) -> str:
    return "\n".join(path.read_text() for path in sorted(cfg.run.dir.parent.glob("*.output-*")))


def steps(cfg: Config) -> list[int]:
    return [int(record["step"]) for record in read_log(cfg.run.dir / "log.jsonl") if "train/loss" in record]


def await_checkpoint(cfg: Config) -> None:
    until = time.monotonic() + 60
    while not list((cfg.run.dir / "checkpoints").glob("step-*")):
        assert time.monotonic() < until, said(cfg)
        time.sleep(0.01)


def starts(cfg: Config) -> int:
    return len(list((cfg.run.dir / "fence").glob("[0-9]*")))


def child_of(process: int) -> int:
    return int(Path(f"/proc/{process}/task/{process}/children").read_text().split()[-1])


def pods(cfg: Config) -> AbstractContextManager[list["subprocess.Popen[str]"]]:
    """What the pods run, with the variables of training-operator 1.7, on machines of one GPU."""
    job = kubernetes_job()
    worker = job["pytorchReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    assert container["command"][-1] == "configs/gpt2-124m.yaml"
    command = shlex.join([*container["command"][:-1], str(cfg.run.dir.with_suffix(".yaml"))])
    command = command.replace("runs/gpt2-124m/", f"{cfg.run.dir}/")
    operator = {
        "PET_NNODES": str(worker["replicas"]),
        "PET_NPROC_PER_NODE": "1",
        "PET_RDZV_BACKEND": job["elasticPolicy"]["rdzvBackend"],
        "PET_RDZV_ENDPOINT": f"localhost:{free_port()}",
        "PET_MAX_RESTARTS": str(job["elasticPolicy"]["maxRestarts"]),
    }
    own = {variable["name"]: variable["value"] for variable in container["env"]}
    return machines(cfg, [command, command], **operator, **own)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "-m gptscale train c.yaml run.seed=1"),
        ({"GPUS": "8"}, "--config_file {}/accelerate/ddp.yaml --num_processes 8 -m gptscale train c.yaml run.seed=1"),
        ({"ENGINE": "zero2"}, "--config_file {}/accelerate/zero2.yaml --num_processes 1 -m gptscale train c.yaml"),
        ({"RANKS": "3"}, "--config_file {}/accelerate/ddp.yaml --num_processes 3 -m gptscale train c.yaml run.seed=1"),
    ],
    ids=["no GPU", "8 GPUs", "an engine", "a number of ranks"],
)
def test_one_machine_gets_a_rank_for_each_gpu(tmp_path: Path, settings: dict[str, str], words: str) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\ncase $1 in -c) echo "${GPUS:-1}";; *) echo "$*";; esac\n')
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("ENGINE", "RANKS")}
    done = subprocess.run(
        [LOCAL, "c.yaml", "run.seed=1"],
        capture_output=True,
        text=True,
        env={**environment, "PYTHON": str(python), **settings},
    )
    assert words.format(ROOT / "launch") in done.stdout, done.stderr
    assert done.stdout.startswith("-m gptscale") == (settings == {})


@pytest.mark.dist
def test_a_run_on_one_machine_ends_with_a_checkpoint_when_its_launcher_is_told_to(
    values: dict[str, Any], cfg: Config
) -> None:
    values["train"]["steps"] = 100_000
    cfg.run.dir.with_suffix(".yaml").write_text(dump_config(parse_config(values)))
    command = f"nohup {LOCAL} {cfg.run.dir.with_suffix('.yaml')}"
    with machines(cfg, [command], RANKS="2", ENGINE="cpu") as (launcher,):
        await_checkpoint(cfg)
        launcher.send_signal(signal.SIGUSR1)  # of which torch's launcher would die alone
        launcher.send_signal(signal.SIGHUP)  # the terminal is closed
        time.sleep(0.5)
        assert launcher.poll() is None
        launcher.terminate()
        launcher.wait(60)
    stopped = re.search(r"stopped at step (\d+) with a checkpoint; the same command goes on from there", said(cfg))
    assert stopped, said(cfg)
    assert (cfg.run.dir / "checkpoints" / f"step-{int(stopped[1]):08d}").is_dir()


@pytest.mark.dist
@pytest.mark.parametrize("told", [False, True], ids=["to the end", "until the first is told to end"])
def test_machines_that_ssh_started_train_together(values: dict[str, Any], cfg: Config, told: bool) -> None:
    if told:
        values["train"]["steps"] = 100_000
        cfg.run.dir.with_suffix(".yaml").write_text(dump_config(parse_config(values)))
    here = {
        "cd gptscale && ": "env ",
        "--nproc_per_node 8": "--nproc_per_node 1",
        "--master_addr node0": "--master_addr 127.0.0.1",
        "--master_port 29500": f"--master_port {free_port()}",
        "configs/gpt2-124m.yaml": str(cfg.run.dir.with_suffix(".yaml")),
    }
    commands = ssh_commands()
    assert len(commands) == 2
    for there, instead in here.items():
        assert all(there in command for command in commands)
        commands = [command.replace(there, instead) for command in commands]
    with machines(cfg, commands) as launchers:
        if told:
            await_checkpoint(cfg)
            launchers[0].terminate()
        codes = [launcher.wait(100) for launcher in launchers]
    if told:
        assert "with a checkpoint; the same command goes on from there" in said(cfg)
        assert codes[1] == 0, said(cfg)
    else:
        assert codes == [0, 0], said(cfg)
        assert steps(cfg) == list(range(1, 13))
        assert "2 x 2 micro-batches of 2 sequences" in said(cfg)
    assert starts(cfg) == 1


@pytest.mark.dist
def test_pods_train_together_and_start_a_dead_rank_again(values: dict[str, Any], cfg: Config) -> None:
    values["train"]["steps"] = 150
    cfg.run.dir.with_suffix(".yaml").write_text(dump_config(parse_config(values)))
    with pods(cfg) as launchers:
        await_checkpoint(cfg)
        os.kill(child_of(child_of(launchers[1].pid)), signal.SIGKILL)
        assert [launcher.wait(150) for launcher in launchers] == [0, 0], said(cfg)
    assert (cfg.run.dir / "done").read_text() == "150\n"
    assert steps(cfg) == list(range(1, 151))
    assert starts(cfg) == 2


@pytest.mark.dist
def test_pods_start_again_until_the_run_is_done_when_one_of_them_is_deleted(
    values: dict[str, Any], cfg: Config
) -> None:
    values["train"]["steps"] = 300
    cfg.run.dir.with_suffix(".yaml").write_text(dump_config(parse_config(values)))
    with pods(cfg) as launchers:
        await_checkpoint(cfg)
        launchers[1].terminate()
        assert launchers[1].wait(100) != 0, said(cfg)  # the other's torchrun may wait minutes for this one
    assert not (cfg.run.dir / "done").exists()
    with pods(cfg) as launchers:
        assert [launcher.wait(150) for launcher in launchers] == [0, 0], said(cfg)
    assert steps(cfg) == list(range(1, 301))

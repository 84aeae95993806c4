"""Every way to start a run, and to start it again."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptscale.config.load import dump_config
from tests.dist.conftest import ENGINES, ROOT, accelerate, changed, forked, launch, torchrun

pytestmark = pytest.mark.dist

TWICE = str(Path(__file__).with_name("twice_worker.py"))


@pytest.mark.parametrize("launcher", [torchrun(2), forked(2)], ids=["torchrun", "no agent"])
def test_a_process_trains_several_times(plain_values: dict[str, Any], tmp_path: Path, launcher: list[str]) -> None:
    quiet: dict[str, Any] = {"sample": {"prompts": []}, "eval": {"sequences": 1, "train_sequences": None}}
    done = launch(changed(plain_values, tmp_path, **quiet), launcher, {}, [TWICE])
    assert done.returncode == 0, done.output
    assert done.log("step")[-1] == 40


MODULE = ["-m", "gptscale"]


def short(values: dict[str, Any], folder: Path, **train: Any) -> Any:
    return changed(values, folder, train={"steps": 8, **train}, sample={"prompts": []}, checkpoint={"every_steps": 2})


@pytest.mark.parametrize(
    ("file", "engine"),
    [
        ("cpu", "ddp"),
        pytest.param("zero3-offload", "zero3-offload", marks=pytest.mark.long),
        pytest.param("hsdp", "fsdp2", marks=pytest.mark.long),  # one machine has one copy
    ],
)
def test_a_launch_file_starts_two_processes(
    plain_values: dict[str, Any], tmp_path: Path, file: str, engine: str
) -> None:
    done = launch(short(plain_values, tmp_path), accelerate(file), {}, MODULE)
    assert done.returncode == 0, done.output
    assert f"CPU, 1 threads, 2 x 2 micro-batches of 2 sequences, fp32, engine {engine}" in done.output
    again = launch(short(plain_values, tmp_path, steps=9), accelerate(file), {}, MODULE)
    assert again.returncode == 0, again.output
    assert again.log("step") == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9]


def test_zero_on_cpus_compiles_nothing_that_a_killed_rank_could_leave_locked(
    plain_values: dict[str, Any], tmp_path: Path
) -> None:
    extensions = tmp_path / "extensions"
    environment = {**ENGINES["zero2"], "TORCH_EXTENSIONS_DIR": str(extensions)}
    done = launch(short(plain_values, tmp_path), forked(2), environment, MODULE)
    assert done.returncode == 0, done.output
    assert not extensions.exists()
    assert "is deprecated" not in done.output  # as torch says of what DeepSpeed calls at every step


def test_every_launch_file_leaves_the_run_to_its_config() -> None:
    files = list((ROOT / "launch" / "accelerate").glob("*.yaml"))
    assert sorted(f.stem for f in files) == ["cpu", "ddp", "fsdp2", "hsdp", "zero1", "zero2", "zero3", "zero3-offload"]
    for file in files:
        said = yaml.safe_load(file.read_text())
        assert said["mixed_precision"] == "no"
        assert not {"gradient_accumulation_steps", "gradient_clipping"} & {*said, *said.get("deepspeed_config", {})}


def test_processes_started_by_hand_find_each_other(plain_values: dict[str, Any], tmp_path: Path) -> None:
    cfg = short(plain_values, tmp_path)
    (tmp_path / "config.yaml").write_text(dump_config(cfg))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    both = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *MODULE, "train", str(tmp_path / "config.yaml")]
    started = [
        subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT), **both, "RANK": r, "LOCAL_RANK": r})
        for r in ("0", "1")
    ]
    assert [p.wait(100) for p in started] == [0, 0]
    assert (cfg.run.dir / "checkpoints" / "step-00000008").is_dir()


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param([*torchrun(2), "--max-restarts=1"], marks=pytest.mark.long),
        [*accelerate("cpu"), "--rdzv_backend=c10d", "--max_restarts=1"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_a_killed_rank_is_restarted_and_the_run_goes_on(
    plain_values: dict[str, Any], tmp_path: Path, launcher: list[str]
) -> None:
    done = launch(short(plain_values, tmp_path), launcher, {"FAULT": "kill:1"})
    assert done.returncode == 0, done.output
    assert len(list((done.cfg.run.dir / "fence").iterdir())) == 2, done.output  # two starts
    assert len(done.log("train/loss")) == 8


@pytest.mark.parametrize(("number", "returncode"), [("SIGTERM", 0), pytest.param("SIGINT", 1, marks=pytest.mark.long)])
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(
    plain_values: dict[str, Any], tmp_path: Path, number: str, returncode: int
) -> None:
    # after Ctrl-C the rank that got it ends with 130, which torchrun tells as 1
    done = launch(short(plain_values, tmp_path), torchrun(2), {"FAULT": f"{number}:1"})
    assert done.returncode == returncode, done.output
    assert done.output.count("stopped at step 3 with a checkpoint; the same command goes on from there") == 1
    assert (done.cfg.run.dir / "checkpoints" / "step-00000003").is_dir()
    assert "Traceback (most recent call last):\n  File" not in done.output.split("torch/distributed")[0]


def test_a_users_mistake_is_told_once(plain_values: dict[str, Any], tmp_path: Path) -> None:
    done = launch(short(plain_values, tmp_path, precision="fp16"), torchrun(2), {}, MODULE)
    assert done.returncode != 0
    assert done.output.count("gptscale: train.precision=fp16 needs a CUDA device") == 1


def test_doctor_measures_what_lies_between_the_ranks(plain_values: dict[str, Any], tmp_path: Path) -> None:
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*torchrun(2), *MODULE, "doctor", "--run-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("between 2 ranks") == 1
    assert "s between the ranks" in done.stdout

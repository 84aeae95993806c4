"""Runs in several processes: a corpus for all of them, and ways to start one."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gptscale.config.load import dump_config, parse_config
from gptscale.config.schema import Config
from gptscale.data.prepare import prepare
from tests.conftest import small_text, small_values
from tests.dist.forked import run_forked

ROOT = Path(__file__).parents[2]
WORKER = str(Path(__file__).with_name("worker.py"))

ENGINES: dict[str, dict[str, str]] = {
    "ddp": {},
    "zero1": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
    "zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    "hsdp": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
        "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
    },
}
"""What `accelerate launch` tells its processes, for torchrun."""

OFFLOAD = {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}
"""The optimizer's state of ZeRO in the machine's memory."""


@dataclass(frozen=True)
class Done:
    """A run that has ended."""

    cfg: Config
    returncode: int
    output: str

    def log(self, measurement: str) -> list[float]:
        """A measurement of all records that have it; those that tell of a checkpoint come when it is safe."""
        records = map(json.loads, (self.cfg.run.dir / "log.jsonl").read_text().splitlines())
        timeless = (record for record in records if "checkpoint/step" not in record)
        return [record[measurement] for record in timeless if measurement in record]

    @property
    def watched(self) -> dict[str, Any]:
        """What the worker wrote down."""
        return json.loads((self.cfg.run.dir.parent / "watched.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def plain_values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of 50 steps of 8 sequences: accumulation 4, 2, 2 and 1 on 1, 2, 3 and 4 ranks."""
    folder = tmp_path_factory.mktemp("dist")
    values = small_values(folder)
    (folder / "text.txt").write_text(small_text())
    prepare(parse_config(values), say=lambda line: None)
    values["train"] |= {"steps": 50, "micro_batch_sequences": 2}
    values["optim"] |= {"lr_peak": 3e-3, "lr_floor": 3e-4, "clip_norm": 0.1, "eps": 1e-4, "warmup_steps": 5}
    values["eval"] |= {"every_steps": None}
    values["checkpoint"] = {"every_steps": 25, "keep": None}
    return values


def changed(values: dict[str, Any], folder: Path, **sections: dict[str, Any]) -> Config:
    """A config that keeps its run in a folder and differs in some settings."""
    sections["run"] = {"dir": str(folder / "run")}
    return parse_config({**values, **{name: {**values[name], **change} for name, change in sections.items()}})


FORKED = "forked"


def forked(world: int) -> list[str]:
    """Ranks without a launcher's start, see tests/dist/forked.py; 0 is one process that no launcher started."""
    return [FORKED, str(world)]


def torchrun(world: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]


def accelerate(file: str, world: int = 2) -> list[str]:
    path = ROOT / "launch" / "accelerate" / f"{file}.yaml"
    return [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={path}", f"--num_processes={world}"]


def launch(cfg: Config, launcher: list[str], env: dict[str, str], what: list[str] | None = None) -> Done:
    """Train with a launcher and wait for the end."""
    folder = cfg.run.dir.parent
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(cfg))
    command = [*(what or [WORKER]), "train", str(folder / "config.yaml")]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WATCH": str(folder), **env}
    if launcher[0] == FORKED:
        output = folder / f"output-{time.monotonic_ns()}.txt"
        code = run_forked(int(launcher[1]), command, settings, output, timeout_s=170)
        return Done(cfg, code, output.read_text(errors="replace"))
    command = [*launcher, *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, env=settings)
    return Done(cfg, done.returncode, done.stdout + done.stderr)


@pytest.fixture(scope="session")
def trace(plain_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Done]:
    """The same run under an engine and a number of ranks; trained once for all tests."""
    known: dict[tuple[str, int], Done] = {}

    def get(engine: str, world: int) -> Done:
        if (engine, world) not in known:
            cfg = changed(plain_values, tmp_path_factory.mktemp(f"{engine}-{world}"))
            if engine == "none":
                done = launch(cfg, forked(0), {})
            elif world == 2:
                done = launch(cfg, accelerate(engine), {})
            else:
                done = launch(cfg, forked(world), ENGINES[engine])
            assert done.returncode == 0, done.output
            known[engine, world] = done
        return known[engine, world]

    return get

"""The ranks of a run as processes on this machine, started and ended without a launcher."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from gptscale.errors import ConfigError, TrainingError

ENGINE_VARIABLES: dict[str, dict[str, str]] = {
    "none": {},
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
"""What `accelerate launch` tells a run's processes from the launch file of the same name; hsdp has two copies here."""

ENGINE_PREFIXES = ("ACCELERATE_USE_D", "ACCELERATE_USE_F", "ACCELERATE_USE_P", "PARALLELISM_CONFIG_")

# Kernels that add in an arbitrary order are left out, so that two runs of the same steps can be compared bit for bit.
# With warn_only, attention's backward pass on CUDA would only warn and add so all the same.
_RUN_GPTSCALE = """
import torch
torch.use_deterministic_algorithms(True)
from gptscale.cli.main import main
main()
"""


@dataclass(frozen=True)
class Place:
    """Where a run lives: its engine and number of ranks."""

    engine: str
    ranks: int

    def __post_init__(self) -> None:
        if self.engine not in ENGINE_VARIABLES:
            raise ConfigError(f"engine {self.engine} is unknown; choose one of {', '.join(ENGINE_VARIABLES)}")
        if self.engine == "none" and self.ranks != 1:
            raise ConfigError(f"engine none is one process, not {self.ranks}; choose ddp for several ranks")
        if self.engine == "hsdp" and self.ranks % 2:
            raise ConfigError(
                f"engine hsdp is two copies of the state here, not {self.ranks} ranks; choose an even number"
            )

    def __str__(self) -> str:
        return f"{self.engine} x{self.ranks}"


class Processes:
    """The `gptscale` command on every rank of a place. Use it in a `with` statement: none outlives it."""

    def __init__(self, place: Place, arguments: Sequence[str], output: Path) -> None:
        """Start them; what rank r prints goes to output with the suffix .r."""
        self._outputs = [output.with_name(f"{output.name}.{rank}") for rank in range(place.ranks)]
        port, self._started = _free_port(), []
        for rank, path in enumerate(self._outputs):
            with path.open("w") as file:
                self._started.append(
                    subprocess.Popen(
                        [sys.executable, "-c", _RUN_GPTSCALE, *arguments],
                        env=_environment(place, rank, port),
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def running(self) -> bool:
        """Whether all of them are at work; raises TrainingError once one has failed."""
        codes = [process.poll() for process in self._started]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None:
            self.kill()
            raise TrainingError(f"rank {failed} ended with {codes[failed]}: {self._last_words()}")
        return None in codes

    def wait(self) -> None:
        """Wait for their good end."""
        while self.running():
            time.sleep(0.05)

    def kill(self) -> None:
        """End those that still run by SIGKILL, which no process can catch."""
        for process in self._started:
            process.kill()
        for process in self._started:
            process.wait()

    def _last_words(self) -> str:
        """The line that says what went wrong, from any rank, or else where to look."""
        for path in self._outputs:
            lines = [line for line in path.read_text(errors="replace").splitlines() if line.startswith("gptscale: ")]
            if lines:
                return f"{lines[-1].removeprefix('gptscale: ')} (all of it: {path})"
        return f"see {self._outputs[0]}"


def _environment(place: Place, rank: int, port: int) -> dict[str, str]:
    threads = max(1, torch.get_num_threads() // place.ranks)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ENGINE_PREFIXES)}
    return {
        "OMP_NUM_THREADS": str(threads),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "TORCHINDUCTOR_DETERMINISTIC": "1",  # chooses no kernel by how fast it was
        **kept,
        **ENGINE_VARIABLES[place.engine],
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(place.ranks),
        "LOCAL_WORLD_SIZE": str(place.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])

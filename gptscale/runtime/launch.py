"""What the launcher set up, read from the environment: ranks, engine, timeouts. Imports no torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from gptscale.errors import ConfigError

if TYPE_CHECKING:
    from gptscale.config.schema import Precision

EngineKind = Literal["plain", "zero", "fsdp2"]

COLLECTIVE_TIMEOUT_S = 600.0
"""How long a rank waits for the others before it gives up; GPTSCALE_COLLECTIVE_TIMEOUT_S overrides it."""

_AS_MIXED = {"bf16-sharded": "bf16"}
"""What Accelerate's mixed_precision calls a precision that it has another name for."""

_MPI_WORLDS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where kinds of MPI say how many processes they have started."""

PARALLELISM_ASKED = "ACCELERATE_USE_PARALLELISM_CONFIG"
"""Says yes where a launch file has a parallelism_config."""

_YES = ("true", "1", "yes", "on", "t", "y")
_NO = ("false", "0", "no", "off", "f", "n")
"""The words that Accelerate knows. It ends with a traceback at any other, an empty one too."""

_FLAGS = ("ACCELERATE_USE_", "ACCELERATE_DYNAMO_USE_", "ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFF", "FORK_LAUNCHED")
"""How the variables begin that are one of these."""

LONGEST_TIMEOUT_S = 1e6
"""Eleven days: longer than any save, and within what the backends can count."""


def check_launch_variables() -> None:
    """Raise ConfigError for what no launcher has set, such as what was left in a shell."""
    for name, least in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1)):
        said = os.environ.get(name, str(least))
        if not said.isdecimal() or int(said) < least:
            raise ConfigError(
                f"{name}={said} in the environment is no number from {least} on; launchers set it, so unset it or "
                "start with accelerate launch or torchrun"
            )
    for name, said in os.environ.items():
        if name.startswith(_FLAGS) and said.lower() not in (*_YES, *_NO):
            raise ConfigError(f"{name}={said} in the environment is neither true nor false; set it so, or unset it")
    world = launched_world()
    for name, rank in (("RANK", launched_rank()), ("LOCAL_RANK", launched_local_rank())):
        if rank >= world:
            raise ConfigError(
                f"{name}={rank} in the environment is no rank of WORLD_SIZE={world}: they count from 0; unset it or "
                "start with accelerate launch or torchrun"
            )


def check_meeting_point() -> None:
    """Raise ConfigError if several ranks are not told where to meet."""
    if not os.environ.get("MASTER_ADDR") or not os.environ.get("MASTER_PORT", "").isdecimal():
        raise ConfigError(
            f"WORLD_SIZE={launched_world()} in the environment says that there are several ranks, but MASTER_ADDR and "
            "MASTER_PORT do not say where they meet; start with accelerate launch or torchrun, or unset WORLD_SIZE"
        )


def check_launch_agrees(precision: "Precision", accumulation: int, clip_norm: float | None) -> None:
    """Raise ConfigError where the launch says something else than the run's config, which alone decides.

    Accelerate's launcher says 1 and no where nobody said anything; other values are meant.
    """
    _check_no_mpi()
    if says_yes(PARALLELISM_ASKED) and launched_engine() != "fsdp2":
        raise ConfigError(
            "the launch has a parallelism_config, which FSDP2 alone follows (launch/accelerate/hsdp.yaml); "
            f"leave it out of the launch file, or unset {PARALLELISM_ASKED}"
        )
    for variable, silent, value, setting, shown in (
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ("1", "auto"), accumulation, "accumulation", accumulation),
        ("ACCELERATE_GRADIENT_CLIPPING", ("none", "auto"), clip_norm or 0.0, "optim.clip_norm", clip_norm),
        ("ACCELERATE_MIXED_PRECISION", ("no",), _AS_MIXED.get(precision, precision), "train.precision", precision),
        ("ACCELERATE_DYNAMO_BACKEND", ("no",), None, "that", "train.compile"),
        ("ACCELERATE_USE_MEGATRON_LM", _NO, None, "the engine", "none, DDP, ZeRO or FSDP2"),
        ("FSDP_OFFLOAD_PARAMS", _NO, None, "offloading", "ZeRO-3's alone (zero3-offload.yaml)"),
        ("FSDP_ACTIVATION_CHECKPOINTING", _NO, None, "that", "train.activation_checkpointing"),
    ):
        found = os.environ.get(variable, silent[0]).lower()
        if found not in silent and not _same(found, value):
            raise ConfigError(
                f"the launch says {variable.removeprefix('ACCELERATE_').lower()}={found}, but {setting} is {shown}; "
                f"leave it out of the launch file, or unset {variable}"
            )


def _check_no_mpi() -> None:
    """Accelerate would join MPI's processes on CPUs, after each has planned its steps as if it were alone."""
    if "WORLD_SIZE" in os.environ or not says_yes("ACCELERATE_USE_CPU"):
        return
    for name in _MPI_WORLDS:
        if (said := os.environ.get(name, "1")) != "1":
            raise ConfigError(
                f"{name}={said} in the environment says that MPI started these processes, which would all take the "
                "whole step; start ranks on CPUs with launch/accelerate/cpu.yaml (without mpirun_config) or torchrun, "
                f"or unset {name}"
            )


def _same(said: str, value: float | str | None) -> bool:
    try:
        return said == value or float(said) == value
    except ValueError:
        return False


def launched_rank() -> int:
    """This process among those the launcher started."""
    return int(os.environ.get("RANK", "0"))


def launched_world() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_local_rank() -> int:
    """This process among those on its machine; without word from the launcher there is one machine."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")))


def launched_engine() -> EngineKind:
    """Which engine the launch asks for; plain is one process or DDP."""
    if says_yes("ACCELERATE_USE_DEEPSPEED"):
        return "zero"
    return "fsdp2" if says_yes("ACCELERATE_USE_FSDP") else "plain"


def collective_timeout_s() -> float:
    """How long a rank waits for the others. Raises ConfigError for what is no number of seconds."""
    said = os.environ.get("GPTSCALE_COLLECTIVE_TIMEOUT_S", "")
    try:
        seconds = float(said or COLLECTIVE_TIMEOUT_S)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= LONGEST_TIMEOUT_S:
        raise ConfigError(
            f"GPTSCALE_COLLECTIVE_TIMEOUT_S={said} is no number of seconds from 1 to {LONGEST_TIMEOUT_S:g}; "
            f"unset it for {COLLECTIVE_TIMEOUT_S:g}"
        )
    return seconds


def launched_dp_shard_size() -> int:
    """Ranks that hold one copy of FSDP2's state between them: all, or as Accelerate's parallelism_config says (HSDP).

    That says 1 where it says nothing. With neither size each machine has a copy. Raises ConfigError for what cannot be.
    """
    world = launched_world()
    if not says_yes(PARALLELISM_ASKED):
        return world
    for name in ("tp", "cp", "sp"):
        if (size := _parallel_size(name)) != 1:
            raise ConfigError(
                f"the launch asks for {name}_size={size}, but ranks divide samples and state only; "
                "leave it out of parallelism_config"
            )
    shard, copies = _parallel_size("dp_shard"), _parallel_size("dp_replicate")
    if shard == copies == 1:
        shard = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    elif shard == 1:
        shard = max(1, world // copies)
    if world % shard or copies not in (1, world // shard):
        number = f", {copies} of them" if copies > 1 else ""
        raise ConfigError(
            f"the launch asks for copies of the state on {shard} ranks each{number}, "
            f"which do not make {world} ranks; set dp_shard_size or dp_replicate_size of parallelism_config"
        )
    return shard


def _parallel_size(name: str) -> int:
    variable = f"PARALLELISM_CONFIG_{name.upper()}_SIZE"
    said = os.environ.get(variable, "1")
    if not said.isdecimal() or int(said) < 1:
        raise ConfigError(f"{variable}={said} in the environment is no number from 1 on; let the launch file set it")
    return int(said)


def says_yes(variable: str) -> bool:
    """Whether an environment variable is set to one of the words for yes."""
    return os.environ.get(variable, "").lower() in _YES


@contextmanager
def unsaid(*variables: str) -> Iterator[None]:
    """Within it the environment has none of these variables."""
    said = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(said)


def life() -> str | None:
    """How often torchrun's agent has restarted the workers of one machine; None where this is no agent's business.

    On several machines the agents count for themselves, so there it names no common life.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("GROUP_WORLD_SIZE") == "1":
        return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return None

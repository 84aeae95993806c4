"""Where a run would live: an engine on so many GPUs, with micro-batches of one size."""

import math
from dataclasses import dataclass, replace

from gptscale.config.schema import Config
from gptscale.errors import ConfigError

ENGINES = ("none", "ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp2", "hsdp")
"""One process, or the launch files for GPUs."""

GPUS_PER_MACHINE = 8


@dataclass(frozen=True)
class Launch:
    """An engine, its GPUs, and the sequences of a micro-batch."""

    engine: str
    gpus: int
    micro_batch_sequences: int = 1
    machine_gpus: int = GPUS_PER_MACHINE
    dp_shard_size: int | None = None
    """GPUs that hold one copy of the state between them under hsdp; null takes those of a machine."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(f"--engine={self.engine} is unknown; choose one of {', '.join(ENGINES)}")
        if self.engine == "none" and self.gpus != 1:
            raise ConfigError(f"--engine=none is one process, not {self.gpus}; choose ddp for several GPUs")
        if self.engine == "hsdp" and self.gpus % self.sharing_gpus:
            raise ConfigError(
                f"--engine=hsdp has a copy of the state on {self.sharing_gpus} GPUs each, which do not divide "
                f"{self.gpus}; give other --gpus, --machine-gpus or --dp-shard-size"
            )

    def under(self, engine: str, gpus: int) -> "Launch | None":
        """The same under another engine or on other GPUs, if that can be, and is not the same by another name."""
        if (engine, gpus) == (self.engine, self.gpus):
            return self
        copies = divmod(gpus, self.dp_shard_size or self.machine_gpus)
        possible = {"none": gpus == 1, "ddp": gpus > 1, "hsdp": copies[0] > 1 and not copies[1]}.get(engine, True)
        return replace(self, engine=engine, gpus=gpus) if possible else None

    @property
    def is_fsdp2(self) -> bool:
        """Whether weights are gathered by PyTorch."""
        return self.engine in ("fsdp2", "hsdp")

    @property
    def sharing_gpus(self) -> int:
        """How many GPUs hold one copy of what is sharded."""
        if not self.shards:
            return 1
        return (self.dp_shard_size or self.machine_gpus) if self.engine == "hsdp" else self.gpus

    @property
    def copies(self) -> int:
        """How many copies of what is sharded there are."""
        return self.gpus // self.sharing_gpus

    @property
    def shards(self) -> bool:
        """Whether a GPU holds less than the whole state."""
        return self.engine not in ("none", "ddp")

    @property
    def offloads(self) -> bool:
        """Whether weights and the optimizer's state are in CPU memory."""
        return self.engine.endswith("-offload")

    def accumulation(self, cfg: Config) -> int:
        """Micro-batches of one GPU in a step."""
        return math.ceil(math.ceil(cfg.sequences_per_step / self.micro_batch_sequences) / self.gpus)

    def filler_sequences(self, cfg: Config) -> int:
        """Samples of weight zero in a step, where the GPUs do not divide it."""
        return self.accumulation(cfg) * self.gpus * self.micro_batch_sequences - cfg.sequences_per_step


def check_launch(cfg: Config, launch: Launch) -> None:
    """Raise ConfigError for what no run could be, or what some of the GPUs could have no part in."""
    if cfg.train.precision == "bf16-sharded" and not launch.shards:
        raise ConfigError(
            f"train.precision=bf16-sharded needs an engine that shards, and --engine={launch.engine} does not; "
            "use train.precision=bf16, or --engine zero1, zero2, zero3, fsdp2 or hsdp"
        )
    if launch.gpus > cfg.sequences_per_step:
        raise ConfigError(
            f"--gpus={launch.gpus} is more than the {cfg.sequences_per_step} sequences of a step; "
            f"use {cfg.sequences_per_step} GPUs or fewer, or raise train.tokens_per_step"
        )


def legal_gpu_counts(cfg: Config, micro_batch_sequences: int = 1) -> list[int]:
    """The numbers of GPUs that divide a step into whole micro-batches, without filling."""
    parts, rest = divmod(cfg.sequences_per_step, micro_batch_sequences)
    return [] if rest else [n for n in range(1, parts + 1) if parts % n == 0]


def nearest_counts(gpus: int, legal: list[int]) -> list[int]:
    """The legal counts next to a number, below and above."""
    below = [n for n in legal if n < gpus][-1:]
    return below + [n for n in legal if n > gpus][:1]

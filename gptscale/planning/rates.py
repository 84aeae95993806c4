"""How fast a GPU computes and sends, from data sheets, from options, or from a run that was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from gptscale.config.schema import Config
from gptscale.errors import ConfigError
from gptscale.model.flops import flops_per_token
from gptscale.planning.launch import Launch
from gptscale.planning.steptime import Rates, calibrated
from gptscale.runtime.gpus import GPUS, Gpu

ASSUMED_MFU = 0.4
"""Of the peak, where nothing was measured."""

NETWORK_BYTES_PER_S = 50e9
"""Between machines for each GPU where nobody says more: 400 Gbit/s."""

GPUS_PER_MACHINE = 8

LOOPBACK_BYTES_PER_S = 1e9
"""Between processes on CPUs where nobody says more."""


@dataclass(frozen=True)
class Measured:
    """What a run's record says of its speed."""

    cfg: Config
    launch: Launch
    device: str
    """As torch calls it."""
    tokens_per_s: float
    mfu: float
    disk_bytes_per_s: float | None
    """null if it saved no checkpoint."""


def measured(
    folder: Path, cfg: Config, device: str, engine: str, world: int, records: Sequence[Mapping[str, float]]
) -> Measured:
    """Read the later half of a run's record, where it is warm. Raises ConfigError if it holds no speed."""
    steps = [record for record in records if "train/tokens_per_s" in record]
    if not steps or cfg.train.micro_batch_sequences is None:
        raise ConfigError(f"--from={folder} holds no measured speed; let the run train for some steps first")
    warm = steps[len(steps) // 2 :]
    saves = [r["checkpoint/bytes"] / r["checkpoint/durable_s"] for r in records if "checkpoint/bytes" in r]
    return Measured(
        cfg=cfg,
        launch=Launch(engine, world, cfg.train.micro_batch_sequences),
        device=device,
        tokens_per_s=median(record["train/tokens_per_s"] for record in warm),
        mfu=median(record["train/mfu"] for record in warm),
        disk_bytes_per_s=median(saves) if saves else None,
    )


def find_gpu(name: str) -> Gpu:
    """The GPU that --gpu names; raises ConfigError for an unknown one."""
    for gpu in GPUS:
        if gpu.name == name.lower():
            return gpu
    raise ConfigError(f"--gpu={name} is unknown; choose one of {', '.join(gpu.name for gpu in GPUS)}")


def processor(run: Measured, memory_bytes: int) -> Gpu:
    """The CPU that a run was measured on, as if it were a GPU with its share of the machine's memory."""
    peak = run.tokens_per_s / run.launch.gpus * flops_per_token(run.cfg.model) / run.mfu
    return Gpu("cpu", (), peak, peak, peak, memory_bytes / 2**30, float("inf"), LOOPBACK_BYTES_PER_S)


def plan_rates(cfg: Config, gpu: Gpu, gpus: int, *, mfu: float = ASSUMED_MFU, bandwidth: float | None = None) -> Rates:
    """Rates from a data sheet and a share of its peak; bandwidth in bytes per second replaces the link's."""
    between = gpu.link_bytes_per_s if gpus <= GPUS_PER_MACHINE else min(gpu.link_bytes_per_s, NETWORK_BYTES_PER_S)
    return Rates(mfu * gpu.peak_flops(cfg.train), gpu.memory_bytes_per_s, bandwidth or between)


def calibrated_mfu(run: Measured, gpu: Gpu, bandwidth: float | None = None) -> float:
    """The share of its GPU's peak at which a run computed, communication aside."""
    rates = plan_rates(run.cfg, gpu, run.launch.gpus, bandwidth=bandwidth)
    found = calibrated(run.cfg, run.launch, rates, run.cfg.train.tokens_per_step / run.tokens_per_s)
    return found.flops / gpu.peak_flops(run.cfg.train)

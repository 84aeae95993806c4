"""How fast a GPU computes and sends, from data sheets, from options, or from a run that was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from gptscale.config.schema import Config
from gptscale.errors import ConfigError
from gptscale.model.size import flops_per_token
from gptscale.planning.launch import Launch
from gptscale.planning.memory import CPU
from gptscale.planning.steptime import Rates, calibrated, moved_bytes
from gptscale.runtime.gpus import GPUS, Gpu

ASSUMED_MFU = 0.4
"""Of the peak, where nothing was measured."""

NETWORK_BYTES_PER_S = 50e9
"""Between machines for each GPU where nobody says more: 400 Gbit/s. NCCL has rings through all of a machine's."""

LOOPBACK_BYTES_PER_S = 1e9
"""Between processes on CPUs where nobody says more."""

CPU_BYTES_PER_S = 5e9
"""Of activations beside matrix products, and of an update.

torch's profiler on 2 cores of an AMD EPYC, a step of the demo's model: 0.11 s beside its products, 0.1 GB kept.
"""


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
    folder: Path, cfg: Config, device: str, launch: Launch, records: Sequence[Mapping[str, float]], from_step: int = 0
) -> Measured:
    """Read the later half of what a run's last start, at from_step, has recorded, where it is warm.

    Earlier ones may have had other GPUs and settings. Raises ConfigError if it holds no speed.
    """
    steps = [
        record
        for record in records
        if record.get("train/tokens_per_s", 0) > 0 and record.get("train/mfu", 0) > 0 and record["step"] > from_step
    ]
    if not steps or cfg.train.micro_batch_sequences is None:
        raise ConfigError(
            f"--from={folder} holds no measured speed of its last start; let it train for some steps first"
        )
    warm = steps[len(steps) // 2 :]
    saves = [r["checkpoint/bytes"] / r["checkpoint/durable_s"] for r in records if r.get("checkpoint/durable_s")]
    return Measured(
        cfg=cfg,
        launch=replace(launch, micro_batch_sequences=cfg.train.micro_batch_sequences),
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
    # A faster CPU's memory is faster too: what is beside the products took half of the time at most.
    batch_s = run.launch.micro_batch_sequences * run.cfg.model.context_length * run.launch.gpus / run.tokens_per_s
    beside = max(CPU_BYTES_PER_S, 2 * moved_bytes(run.cfg, run.launch.micro_batch_sequences) / batch_s)
    gib = memory_bytes / 2**30
    return Gpu(CPU, (), peak, peak, peak, gib, beside, LOOPBACK_BYTES_PER_S, beside_bytes_per_s=beside)


def shared(gpu: Gpu, run: Measured, ranks: int) -> Gpu:
    """What is left for each of more ranks of a CPU that a run was measured on, all of whose cores it had."""
    if gpu.name != CPU or gpu.beside_bytes_per_s is None:
        return gpu
    share = min(1.0, run.launch.gpus / ranks)
    peak, beside = share * gpu.peak_flops(run.cfg.train), share * gpu.beside_bytes_per_s
    return replace(
        gpu,
        half_flops=peak,
        tf32_flops=peak,
        fp32_flops=peak,
        memory_bytes_per_s=beside,
        beside_bytes_per_s=beside,
    )


def plan_rates(
    cfg: Config, gpu: Gpu, launch: Launch, *, mfu: float = ASSUMED_MFU, bandwidth: float | None = None
) -> Rates:
    """Rates from a data sheet and a share of its peak; bandwidth in bytes per second replaces that over all GPUs."""
    reached, link, machine = mfu * gpu.peak_flops(cfg.train), gpu.link_bytes_per_s, launch.machine_gpus
    rates = Rates(reached, gpu.memory_bytes_per_s, bandwidth or link, gpu.beside_bytes_per_s)
    if launch.gpus <= machine:
        return rates
    between = bandwidth / machine if bandwidth else min(link, NETWORK_BYTES_PER_S)
    least = launch.gpus % machine or machine  # GPUs of the machine with the fewest
    ring = bandwidth or min(link, least * NETWORK_BYTES_PER_S)
    return replace(rates, link_bytes=ring, near_bytes=max(ring, link), between_bytes=between)


def calibrated_mfu(run: Measured, gpu: Gpu, bandwidth: float | None = None) -> float:
    """The share of its GPU's peak at which a run computed, communication aside; on a CPU, at which its products did.

    Raises ConfigError where that is more than all, so that the communication cannot have been as slow as was said.
    """
    rates = plan_rates(run.cfg, gpu, run.launch, bandwidth=bandwidth)
    step_s = run.cfg.train.tokens_per_step / run.tokens_per_s
    mfu = calibrated(run.cfg, run.launch, rates, step_s).flops / gpu.peak_flops(run.cfg.train)
    if mfu > 1 and gpu.beside_bytes_per_s is None:
        raise ConfigError(
            f"--from took {step_s:.3g} s for a step, which {run.launch.gpus} x {gpu.name} with "
            f"{rates.link_bytes / 1e9:.3g} GB/s between them cannot; give the right --gpu and --bandwidth"
        )
    return mfu

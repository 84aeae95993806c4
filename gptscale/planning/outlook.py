"""All that a plan says, for one launch and beside it for every engine."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gptscale.config.schema import Config
from gptscale.errors import ConfigError
from gptscale.model.size import flops_per_token, model_size
from gptscale.planning.advice import nearest_that_fits
from gptscale.planning.checkpoints import Checkpoints, plan_checkpoints
from gptscale.planning.launch import ENGINES, Launch, check_launch, legal_gpu_counts, nearest_counts
from gptscale.planning.memory import GIB, Memory, largest_micro_batch, memory_of, usable_bytes
from gptscale.planning.steptime import Rates, StepTime, step_time
from gptscale.runtime.gpus import Gpu

CHINCHILLA_TOKENS = 20
"""For each parameter: where more of either is worth the same (Hoffmann et al. 2022)."""


@dataclass(frozen=True)
class EngineOutlook:
    """The run under one engine."""

    engine: str
    memory: Memory
    total_bytes: int
    """On a GPU."""
    largest_micro_batch_sequences: int
    """0 where not even one sequence fits."""
    step: StepTime
    step_s: float


@dataclass(frozen=True)
class Budget:
    """So many tokens, and what they take."""

    name: str
    tokens: int
    steps: int
    hours: float
    gpu_hours: float


@dataclass(frozen=True)
class Outlook:
    """What a run would be like."""

    parameters: int
    flops_per_token: int
    tokens_per_step: int
    sequences_per_step: int
    launch: Launch
    accumulation: int
    filler_sequences: int
    gpu: str
    gpu_bytes: int
    usable_bytes: int
    legal_gpu_counts: list[int]
    engines: list[EngineOutlook]
    """The one that was asked for first."""
    rates: Rates
    budgets: list[Budget]
    checkpoints: Checkpoints
    fits: bool
    verdict: str


def look_ahead(
    cfg: Config,
    launch: Launch,
    gpu: Gpu,
    rates: Rates,
    *,
    disk_bytes_per_s: float,
    total_steps: int | None = None,
    budgets: Mapping[str, int] | None = None,
) -> Outlook:
    """Plan a run; total_steps is null where its length is not known, budgets are tokens by what to call them.

    Raises ConfigError for a launch that cannot be.
    """
    check_launch(cfg, launch)
    if not gpu.computes(cfg.train):
        raise ConfigError(f"train.precision={cfg.train.precision} is none that {gpu.name} computes in; use fp16")
    size = model_size(cfg.model)
    micro_batch = launch.micro_batch_sequences
    legal = legal_gpu_counts(cfg, micro_batch)
    engines = [_look_at(cfg, place, gpu, rates) for place in (launch, *_others(cfg, launch))]
    here = engines[0]
    lengths = {"Chinchilla": CHINCHILLA_TOKENS * size.parameters, **(budgets or {})}
    if total_steps is not None:
        lengths = {"this run": total_steps * cfg.train.tokens_per_step, **lengths}
    fitting = here.memory.needed(gpu) <= usable_bytes(cfg, gpu)
    return Outlook(
        parameters=size.parameters,
        flops_per_token=flops_per_token(cfg.model),
        tokens_per_step=cfg.train.tokens_per_step,
        sequences_per_step=cfg.sequences_per_step,
        launch=launch,
        accumulation=launch.accumulation(cfg),
        filler_sequences=launch.filler_sequences(cfg),
        gpu=gpu.name,
        gpu_bytes=int(gpu.memory_gib * GIB),
        usable_bytes=usable_bytes(cfg, gpu),
        legal_gpu_counts=legal,
        engines=engines,
        rates=rates,
        budgets=[_budget(name, tokens, cfg, launch, here.step) for name, tokens in lengths.items()],
        checkpoints=plan_checkpoints(cfg, total_steps, disk_bytes_per_s),
        fits=fitting,
        verdict=_verdict(cfg, launch, gpu, here.memory, fitting),
    )


def _others(cfg: Config, launch: Launch) -> Iterator[Launch]:
    """The same GPUs under the other engines."""
    for engine in ENGINES:
        place = None if engine == launch.engine else launch.under(engine, launch.gpus)
        if place and (place.shards or cfg.train.precision != "bf16-sharded"):
            yield place


def _look_at(cfg: Config, launch: Launch, gpu: Gpu, rates: Rates) -> EngineOutlook:
    memory, step = memory_of(cfg, launch), step_time(cfg, launch, rates)
    largest = largest_micro_batch(cfg, launch, gpu)
    return EngineOutlook(launch.engine, memory, memory.total, largest, step, step.total_s)


def _budget(name: str, tokens: int, cfg: Config, launch: Launch, step: StepTime) -> Budget:
    steps = tokens // cfg.train.tokens_per_step
    hours = steps * step.total_s / 3600
    return Budget(name, tokens, steps, hours, hours * launch.gpus)


def _verdict(cfg: Config, launch: Launch, gpu: Gpu, memory: Memory, fitting: bool) -> str:
    usable, needed, most = usable_bytes(cfg, gpu), memory.needed(gpu), memory.largest(gpu)
    if fitting:
        return f"fits: {needed / GIB:.1f} of {usable / GIB:.1f} GiB{_filling(cfg, launch)}"
    nearest = nearest_that_fits(cfg, launch, gpu)
    return (
        f"does not fit: {needed / GIB:.1f} GiB where {usable / GIB:.1f} of the {gpu.memory_gib:g} of "
        f"{gpu.name} can be used, because {most} take {getattr(memory, most) / GIB:.1f}; "
        + (f"nearest that does: {nearest}" if nearest else "no engine, number of GPUs or GPU that is known would do")
    )


def _filling(cfg: Config, launch: Launch) -> str:
    """What it costs that the GPUs do not divide the step, and what would."""
    filler = launch.filler_sequences(cfg)
    if not filler:
        return ""
    sequences, micro_batch = cfg.sequences_per_step, launch.micro_batch_sequences
    nearest = [f"--gpus {n}" for n in nearest_counts(launch.gpus, legal_gpu_counts(cfg, micro_batch))]
    smaller = [n for n in range(1, micro_batch) if sequences % (launch.gpus * n) == 0][-1:]
    nearest += [f"train.micro_batch_sequences={n}" for n in smaller]
    if not nearest:
        single = nearest_counts(launch.gpus, legal_gpu_counts(cfg))
        nearest = [f"--gpus {n} train.micro_batch_sequences=1" for n in single]
    gpus = "1 GPU does" if launch.gpus == 1 else f"{launch.gpus} GPUs do"
    return (
        f", but {gpus} not divide the step's {sequences} sequences in micro-batches of {micro_batch}: "
        f"{filler / (filler + sequences):.0%} of the work is filling; nearest that do: {' or '.join(nearest)}"
    )

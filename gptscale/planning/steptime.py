"""How long a step takes: computing, updating, and what communication does not hide behind computing.

On a ring of n ranks an all-reduce moves 2 (n-1)/n of its tensor through each rank, a reduce or gather (n-1)/n. Under
hsdp the ranks of a machine are a ring, and those with the same shard on all machines another. What each engine sends is
measured in tests/dist/test_cost.py and test_hsdp.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gptscale.config.schema import Config
from gptscale.model.size import flops_per_token, model_size, recomputed_flops_per_token
from gptscale.planning.activations import activations
from gptscale.planning.launch import Launch
from gptscale.planning.state import WEIGHT_BYTES, updated_elements

BACKWARD_SHARE = 2 / 3
"""Of the time of a micro-batch."""

UPDATE_BYTES = 40
"""Read and written for each element of an update: its norm 4, clipping 8, AdamW 28."""

PASSES = 5
"""How often a kept activation is moved: written and read, read in the backward pass, its gradient written and read."""

PASSES_AGAIN = 2
"""And where it is computed again."""

HOST_BYTES_PER_S = 25e9
"""Between a GPU and its machine's memory, over PCIe 4.0 x16; and what of a CPU's memory rate one GPU's share is."""


@dataclass(frozen=True)
class Rates:
    """What one GPU does in a second."""

    flops: float
    """Of the model's arithmetic, with what is computed again; all losses but communication are in it."""
    memory_bytes: float
    link_bytes: float
    """To the next GPU on a ring over all of them, one way; nccl-tests call it the bus bandwidth."""
    beside_bytes: float | None = None
    """Of activations, beside matrix products; null where that is among the losses."""
    near_bytes: float | None = None
    """On a ring over the GPUs of one machine; null where that is all of them."""
    between_bytes: float | None = None
    """To the same GPU of another machine, while all others send to theirs; null where there is one machine."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step."""

    compute_s: float
    update_s: float
    communication_s: float
    """All of it."""
    exposed_s: float
    """What of it nothing is computed beside."""

    @property
    def total_s(self) -> float:
        """From one step to the next."""
        return self.compute_s + self.update_s + self.exposed_s


def step_time(cfg: Config, launch: Launch, rates: Rates) -> StepTime:
    """Predict a step."""
    tokens = launch.micro_batch_sequences * cfg.model.context_length
    micro_batch_s = tokens * computed_flops_per_token(cfg) / rates.flops
    if rates.beside_bytes is not None:
        micro_batch_s += moved_bytes(cfg, launch.micro_batch_sequences) / rates.beside_bytes
    exchanges = list(_exchanges(cfg, launch, rates, micro_batch_s))
    return StepTime(
        compute_s=launch.accumulation(cfg) * micro_batch_s,
        update_s=_update_s(cfg, launch, rates),
        communication_s=sum(s for s, _ in exchanges),
        exposed_s=sum(max(0.0, s - hidden_s) for s, hidden_s in exchanges),
    )


def computed_flops_per_token(cfg: Config) -> int:
    """With what activation checkpointing computes again, which utilisation (MFU) does not count."""
    again = recomputed_flops_per_token(cfg.model) if cfg.train.activation_checkpointing else 0
    return flops_per_token(cfg.model) + again


def moved_bytes(cfg: Config, sequences: int) -> int:
    """Bytes of activations that a micro-batch of so many sequences writes and reads beside its matrix products."""
    all_kept = cfg.with_changes(train={"activation_checkpointing": False})
    again = PASSES_AGAIN if cfg.train.activation_checkpointing else 0
    return (PASSES + again) * activations(all_kept, sequences).kept


def calibrated(cfg: Config, launch: Launch, rates: Rates, measured_s: float) -> Rates:
    """The rates with the FLOP/s under which `step_time` gives what was measured for a run of this config.

    The lowest, where communication would hide computing at any higher one too.
    """
    low, high = 0.0, 1e18
    for _ in range(200):  # a step's time falls with the rate, so halving finds it to the last bit
        middle = (low + high) / 2
        slow = step_time(cfg, launch, replace(rates, flops=middle)).total_s > measured_s
        low, high = (middle, high) if slow else (low, middle)
    return replace(rates, flops=high)


def _exchanges(cfg: Config, launch: Launch, rates: Rates, micro_batch_s: float) -> Iterator[tuple[float, float]]:
    """Seconds of every exchange of a step, and the seconds that are computed beside it."""
    if launch.gpus == 1:
        return
    ring = launch.sharing_gpus if launch.shards else launch.gpus
    link = (rates.near_bytes if ring <= launch.machine_gpus else None) or rates.link_bytes
    size, passed_on = model_size(cfg.model), (ring - 1) / ring / link
    weights = WEIGHT_BYTES[cfg.train.precision] * size.total * passed_on
    gradients = 4 * size.total * passed_on
    accumulation = launch.accumulation(cfg)
    match launch.engine:
        case "ddp":
            yield 2 * gradients, BACKWARD_SHARE * micro_batch_s
        case "zero1":  # DeepSpeed sends on the stream that computes, except under ZeRO-3
            yield gradients + weights, 0.0
        case "zero2":
            yield accumulation * gradients + weights, 0.0
        case "fsdp2" | "hsdp":
            shared = 2 * (launch.copies - 1) / launch.copies * 4 * size.total / ring
            between = shared / (rates.between_bytes or rates.link_bytes)
            yield from [(2 * weights, micro_batch_s)] * (accumulation - 1)
            yield 2 * weights + gradients + between, micro_batch_s
        case _:
            yield from [(2 * weights + gradients, micro_batch_s)] * accumulation


def _update_s(cfg: Config, launch: Launch, rates: Rates) -> float:
    elements = updated_elements(cfg, launch)
    if not launch.offloads:
        return UPDATE_BYTES * elements / rates.memory_bytes
    # gradients down, weights up for every pass, and the update itself in the CPU's memory
    moved = 4 + 2 * WEIGHT_BYTES[cfg.train.precision]
    return (UPDATE_BYTES + launch.accumulation(cfg) * moved) * elements / HOST_BYTES_PER_S

"""What an engine keeps of a model's state on each of n GPUs, and the buffers it moves gradients and weights through.

Bytes for each element of the model; n GPUs share it, all or with hsdp those of a machine, and what is written whole
is on every GPU:

                          weights          gradients                   moments    buffers
    none                  4                4                           8
    ddp                   4                4                           8       gradients, where micro-batches add up
    zero1                 4 + 4/n          4                           8/n        a bucket
    zero1, bf16-sharded   2 + 4/n          4 + 2                       8/n        gradients, copied to be sent
    zero2                 4 + 4/n          4/n                         8/n        a bucket
    zero3                 4/n + 4/n        4/n                         8/n        a bucket, what is gathered
    fsdp2, hsdp           4/n              4, or with one micro-batch 4/n   8/n   what is gathered

bf16-sharded has 2 in place of the first 4 under ZeRO, whose 4/n are fp32 masters; DeepSpeed keeps masters where the
weights are fp32 too. Muon has 4 in place of 8 for the matrices of the blocks. DDP's buckets hold the gradients
themselves from the first all-reduce of a process on; where micro-batches accumulate before it, they lie beside them.
While micro-batches accumulate, FSDP2's gradients are whole until the last.

tests/dist counts weights, gradients and moments of all of this with two ranks, and the buffers that stay.
"""

import math
from dataclasses import dataclass

from gptscale.config.schema import Config
from gptscale.model.size import model_size
from gptscale.planning.launch import Launch
from gptscale.runtime.zero_config import BUCKET_ELEMENTS, LIVE_ELEMENTS

WEIGHT_BYTES = {"fp32": 4, "bf16": 4, "fp16": 4, "bf16-sharded": 2}
"""Of an element of the weights that a model computes with."""

ALLREDUCE_ELEMENTS = 500_000_000
"""DeepSpeed's own bucket of ZeRO-1 with bf16-sharded, whatever reduce_bucket_size is."""


@dataclass(frozen=True)
class State:
    """Bytes for one GPU."""

    weights: int
    """With DeepSpeed's fp32 masters."""
    gradients: int
    moments: int
    buffers: int
    """Gradients on their way to their owners, and weights gathered from them."""
    host: int = 0
    """In the machine's memory."""


def model_state(cfg: Config, launch: Launch, bucket_elements: int = BUCKET_ELEMENTS["cuda"]) -> State:
    """What is there while a step's micro-batches accumulate; a bucket has its room in a model of any size."""
    weight, whole = WEIGHT_BYTES[cfg.train.precision], model_size(cfg.model).total
    share = updated_elements(cfg, launch)
    moments = moment_bytes(cfg) * share // whole
    buffers = _buffer_bytes(cfg, launch, bucket_elements)
    accumulates = launch.accumulation(cfg) > 1
    match launch.engine:
        case "none" | "ddp":
            return State(weight * whole, 4 * whole, moments, buffers)
        case "fsdp2" | "hsdp":
            return State(4 * share, 4 * (whole if accumulates else share), moments, buffers)
        case "zero1":
            gradients = (4 if weight == 4 else 4 + weight) * whole
            return State(weight * whole + 4 * share, gradients, moments, buffers)
        case "zero2":
            return State(weight * whole + 4 * share, 4 * share, moments, buffers)
        case "zero3":
            return State((weight + 4) * share, 4 * share, moments, buffers)
        case _:
            return State(0, 0, 0, buffers, host=(weight + 4 + 4) * share + moments)


def moment_bytes(cfg: Config) -> int:
    """The optimizer's state of the whole model: AdamW's two moments, or one of Muon's for the blocks' matrices."""
    size = model_size(cfg.model)
    return 4 * (2 * size.total - (size.layers * size.block_matrices if cfg.optim.name == "muon" else 0))


def updated_elements(cfg: Config, launch: Launch) -> int:
    """Elements that one GPU's optimizer updates."""
    return math.ceil(model_size(cfg.model).total / launch.sharing_gpus)


def _buffer_bytes(cfg: Config, launch: Launch, bucket_elements: int) -> int:
    precision, size = cfg.train.precision, model_size(cfg.model)
    weight = WEIGHT_BYTES[precision]
    match launch.engine:
        case "none":
            return 0
        case "ddp":
            return 4 * size.total if launch.accumulation(cfg) > 1 else 0
        case "fsdp2" | "hsdp":  # gathered: two blocks and what is outside of them; whole: a block's new gradients
            return weight * (2 * size.block + size.outside) + 4 * size.block
        case "zero1" if precision == "bf16-sharded":
            return 4 * min(ALLREDUCE_ELEMENTS, size.total)
        case "zero1" | "zero2":
            return weight * bucket_elements
        case _:  # a full bucket is copied to be scattered
            gathered = weight * min(size.total, LIVE_ELEMENTS + size.outside)  # up to the end of a tensor
            copied = 4 * bucket_elements if size.total > bucket_elements else 0
            return 4 * bucket_elements + copied + gathered

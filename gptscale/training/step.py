"""One update of the weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptscale.data.loader import MicroBatch
from gptscale.runtime.engine import Engine
from gptscale.runtime.seeding import seed_micro_batch
from gptscale.training.plan import Plan


@dataclass(frozen=True)
class StepResult:
    """What a step was like, still on the device."""

    loss: Tensor
    """This rank's part of the mean cross-entropy in nats; the ranks' parts add up to it."""
    grad_norm: Tensor
    """Global gradient norm before clipping."""


def train_step(
    engine: Engine,
    plan: Plan,
    micro_batches: Sequence[MicroBatch],
    *,
    seed: int,
    step: int,
    lr: float,
    clip_norm: float | None,
) -> StepResult:
    """Accumulate the gradients of this rank's micro-batches and update. All ranks call this together.

    A micro-batch's loss is a sum over tokens. Divided by the tokens of the whole step, the sums of
    all micro-batches add up to the mean, however they are cut and whatever filler they hold. The
    engine averages over ranks and micro-batches, which the factor undoes.
    """
    engine.set_lr(lr)
    averaged_over = engine.world * plan.accumulation
    nats = torch.zeros((), device=engine.device)
    pinned = engine.device.type == "cuda"  # elsewhere a copy may read what was written to its source since (MPS)
    for batch in micro_batches:
        inputs = batch.inputs.to(engine.device, non_blocking=pinned)
        targets = batch.targets.to(engine.device, non_blocking=pinned)
        with engine.accumulate():
            seed_micro_batch(seed, step, batch.first_position)
            loss = engine.model(inputs, targets)
            engine.backward(loss * (averaged_over / plan.tokens_per_step))
        nats += loss.detach()
    return StepResult(nats / plan.tokens_per_step, engine.update(clip_norm))

"""The learning rate as a function of the step."""

import math

from gptscale.config.schema import OptimizerConfig


def lr_at(step: int, optim: OptimizerConfig, total_steps: int) -> float:
    """The learning rate of a step, counted from 0.

    Rises linearly from lr_peak / (warmup_steps + 1) to lr_peak at step warmup_steps, then falls
    along half a cosine to lr_floor at the last step, total_steps - 1, and stays there. If
    decay_steps is given, it counts as total_steps.
    """
    total_steps = optim.decay_steps or total_steps
    if step < optim.warmup_steps:
        return optim.lr_peak * (step + 1) / (optim.warmup_steps + 1)
    fall = max(1, total_steps - 1 - optim.warmup_steps)
    progress = min(1.0, (step - optim.warmup_steps) / fall)
    return optim.lr_floor + (optim.lr_peak - optim.lr_floor) * 0.5 * (1 + math.cos(math.pi * progress))

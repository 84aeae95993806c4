"""What a config comes to on a corpus: how many steps, and how a step is cut into micro-batches."""

import math
from dataclasses import dataclass

from gptscale.config.schema import Config
from gptscale.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """The numbers of a run that follow from its config, its corpus and the number of ranks."""

    total_steps: int
    tokens_per_step: int
    sequences_per_step: int
    samples_per_epoch: int
    micro_batch_sequences: int
    accumulation: int
    """Micro-batches of one rank in a step."""
    world: int

    @property
    def filler_sequences(self) -> int:
        """Samples of weight zero in a step, where the ranks do not divide it."""
        return self.accumulation * self.world * self.micro_batch_sequences - self.sequences_per_step

    def epoch_at(self, step: int) -> float:
        """Passes over the training samples after so many steps."""
        return step * self.sequences_per_step / self.samples_per_epoch


def make_plan(cfg: Config, samples_per_epoch: int, world: int) -> Plan:
    """Work out a run's length and cut; samples_per_epoch is how many windows the training split has."""
    sequences = cfg.sequences_per_step
    micro = cfg.train.micro_batch_sequences
    assert micro is not None, "with_micro_batch comes first"
    return Plan(
        total_steps=_total_steps(cfg, samples_per_epoch),
        tokens_per_step=cfg.train.tokens_per_step,
        sequences_per_step=sequences,
        samples_per_epoch=samples_per_epoch,
        micro_batch_sequences=micro,
        accumulation=math.ceil(math.ceil(sequences / micro) / world),
        world=world,
    )


def _total_steps(cfg: Config, samples_per_epoch: int) -> int:
    train = cfg.train
    if train.steps is not None:
        steps = train.steps
    elif train.tokens is not None:
        steps = train.tokens // train.tokens_per_step
    else:
        assert train.epochs is not None
        steps = math.floor(train.epochs * samples_per_epoch / cfg.sequences_per_step)
    if steps < 1:
        raise ConfigError(
            f"the run comes to no step: train.tokens={train.tokens}, train.epochs={train.epochs} at "
            f"train.tokens_per_step={train.tokens_per_step}; train longer or lower train.tokens_per_step"
        )
    if cfg.optim.warmup_steps >= steps:
        raise ConfigError(
            f"optim.warmup_steps={cfg.optim.warmup_steps} leaves nothing of the run's {steps} steps; lower it"
        )
    return steps

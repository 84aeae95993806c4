"""What a config comes to on a corpus: how many steps, and how a step is cut into micro-batches."""

import math
from dataclasses import dataclass
from fractions import Fraction

from gptscale.config.schema import Config
from gptscale.errors import ConfigError


@dataclass(frozen=True)
class Segment:
    """A stretch of a run with one batch size; a resume that changes train.tokens_per_step begins another."""

    step: int
    """Updates before it."""
    samples: int
    """Samples handed out before it."""
    tokens_per_step: int


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
    segment: Segment

    @property
    def filler_sequences(self) -> int:
        """Samples of weight zero in a step, where the ranks do not divide it."""
        return self.accumulation * self.world * self.micro_batch_sequences - self.sequences_per_step

    @property
    def position_shift(self) -> int:
        """How many more samples were handed out than steps of this size would have taken."""
        return self.segment.samples - self.segment.step * self.sequences_per_step

    def samples_at(self, step: int) -> int:
        """Samples handed out after so many steps."""
        return step * self.sequences_per_step + self.position_shift

    def tokens_at(self, step: int) -> int:
        """Tokens trained on after so many steps."""
        return self.samples_at(step) * (self.tokens_per_step // self.sequences_per_step)

    def epoch_at(self, step: int) -> float:
        """Passes over the training samples after so many steps."""
        return self.samples_at(step) / self.samples_per_epoch


def make_plan(cfg: Config, samples_per_epoch: int, world: int, segment: Segment | None = None) -> Plan:
    """Work out a run's length and cut; samples_per_epoch is how many windows the training split has.

    segment is the one that the run is in; null is the first.
    """
    segment = segment or Segment(0, 0, cfg.train.tokens_per_step)
    sequences = cfg.sequences_per_step
    micro = cfg.train.micro_batch_sequences
    assert micro is not None, "with_micro_batch comes first"
    return Plan(
        total_steps=_total_steps(cfg, samples_per_epoch, segment),
        tokens_per_step=cfg.train.tokens_per_step,
        sequences_per_step=sequences,
        samples_per_epoch=samples_per_epoch,
        micro_batch_sequences=micro,
        accumulation=math.ceil(math.ceil(sequences / micro) / world),
        world=world,
        segment=segment,
    )


def _total_steps(cfg: Config, samples_per_epoch: int, segment: Segment) -> int:
    train = cfg.train
    if train.steps is not None:
        steps = train.steps
    else:
        if train.tokens is not None:
            samples = train.tokens // cfg.model.context_length
        else:
            assert train.epochs is not None
            samples = math.floor(Fraction(str(train.epochs)) * samples_per_epoch)  # 4.35 is no binary fraction
        steps = segment.step + (samples - segment.samples) // cfg.sequences_per_step
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

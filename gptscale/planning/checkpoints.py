"""What checkpoints take: bytes, disk, time."""

from dataclasses import dataclass

from gptscale.config.schema import CheckpointConfig, Config
from gptscale.model.size import model_size
from gptscale.planning.state import moment_bytes


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run."""

    bytes_each: int
    kept: int
    """How many are there at the end, at most."""
    disk_bytes: int
    """The most that is on disk: a new one is whole before an old one goes."""
    at_least: bool
    """Whether more may stay, by how long the run is, which is not known."""
    save_s: float
    """Until one is safe on disk; training goes on beside it, if checkpoint.background says so."""


def plan_checkpoints(cfg: Config, total_steps: int | None, disk_bytes_per_s: float) -> Checkpoints:
    """Work out a run's checkpoints; total_steps is null where its length is not known."""
    size, kept = checkpoint_bytes(cfg), kept_checkpoints(cfg.checkpoint, total_steps)
    grows = cfg.checkpoint.keep is None or cfg.checkpoint.keep_every_steps is not None
    return Checkpoints(size, kept, (kept + 1) * size, total_steps is None and grows, size / disk_bytes_per_s)


def checkpoint_bytes(cfg: Config) -> int:
    """Weights and the optimizer's state, in fp32."""
    return 4 * model_size(cfg.model).total + moment_bytes(cfg)


def kept_checkpoints(rules: CheckpointConfig, total_steps: int | None) -> int:
    """How many checkpoints of a whole run stay; of one whose length is not known, at least."""
    if total_steps is None:
        return (rules.keep or 1) + rules.keep_best
    saved = {total_steps, *range(rules.every_steps or total_steps, total_steps, rules.every_steps or total_steps)}
    if rules.keep is None:
        return len(saved)
    newest = set(sorted(saved)[-rules.keep :])
    kept = newest | {step for step in saved if rules.keep_every_steps and step % rules.keep_every_steps == 0}
    return min(len(saved), len(kept) + rules.keep_best)

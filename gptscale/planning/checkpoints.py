"""What checkpoints take: bytes, disk, time."""

from dataclasses import dataclass

from gptscale.config.schema import CheckpointConfig, Config
from gptscale.model.size import model_size


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run."""

    bytes_each: int
    kept: int
    """How many are there at the end."""
    save_s: float
    """Until one is safe on disk; training goes on beside it, if checkpoint.background says so."""

    @property
    def disk_bytes(self) -> int:
        """The most that is on disk: a new one is whole before an old one goes."""
        return (self.kept + 1) * self.bytes_each


def plan_checkpoints(cfg: Config, total_steps: int | None, disk_bytes_per_s: float) -> Checkpoints:
    """Work out a run's checkpoints; total_steps is null where its length is not known."""
    size = checkpoint_bytes(cfg)
    return Checkpoints(size, kept_checkpoints(cfg.checkpoint, total_steps), size / disk_bytes_per_s)


def checkpoint_bytes(cfg: Config) -> int:
    """Weights and the optimizer's state in fp32: two moments, or one of Muon's for the matrices of the blocks."""
    size = model_size(cfg.model)
    muon = size.layers * size.block_matrices if cfg.optim.name == "muon" else 0
    return 4 * (3 * size.total - muon)


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

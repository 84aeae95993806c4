"""Which checkpoints of a run stay on disk."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """What is kept; a checkpoint stays if any of these says so."""

    newest: int | None
    """How many of the newest; null keeps all."""
    every_steps: int | None = None
    """Steps of which multiples are kept for good; null keeps none for that."""
    best: bool = False
    """Whether the one with the lowest validation loss is kept."""

    def doomed(self, steps: Iterable[int], best_step: int | None) -> list[int]:
        """The steps whose checkpoints are to go, oldest first."""
        ordered = sorted(steps)
        if self.newest is None:
            return []
        return [step for step in ordered[: -self.newest] if not self._keeps(step, best_step)]

    def _keeps(self, step: int, best_step: int | None) -> bool:
        milestone = self.every_steps is not None and step % self.every_steps == 0
        return milestone or (self.best and step == best_step)

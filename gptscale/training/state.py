"""What a run has to remember besides tensors."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainState:
    """The ledger: how far the run is. Order, rate and masks follow from it and the config."""

    step: int = 0
    """Finished updates."""
    samples: int = 0
    """Samples handed out."""
    skipped_windows: list[int] = field(default_factory=list)
    """Sample positions that were left out; none yet."""
    interval: dict[str, float] = field(default_factory=lambda: {"steps": 0, "loss": 0.0})
    """The log interval that the checkpoint cut in two."""

    def advance(self, samples: int) -> None:
        """One more step is done."""
        self.step += 1
        self.samples += samples

    def ledger(
        self, *, lr: float, total_steps: int, loss_scaler: dict[str, Any], interval: dict[str, float]
    ) -> dict[str, Any]:
        """As the checkpoint keeps it.

        lr is that of the last update and total_steps the run's length, to tell a changed schedule from the
        old one; loss_scaler is fp16's; interval is the unfinished log interval.
        """
        return {
            "lr": lr,
            "total_steps": total_steps,
            "step": self.step,
            "samples": self.samples,
            "skipped_windows": self.skipped_windows,
            "loss_scaler": loss_scaler,
            "interval": interval,
        }

    @classmethod
    def from_ledger(cls, ledger: dict[str, Any]) -> "TrainState":
        """Where a checkpoint left off."""
        return cls(ledger["step"], ledger["samples"], list(ledger["skipped_windows"]), ledger["interval"])

"""What a run has to remember besides tensors."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from gptscale.tracking.jsonl import finite_or_none
from gptscale.training.plan import Segment


@dataclass(frozen=True)
class Best:
    """The checkpoint with the lowest validation loss so far."""

    step: int
    val_loss: float


@dataclass
class TrainState:
    """The ledger: how far the run is. Order, rate and masks follow from it and the config."""

    step: int = 0
    """Finished updates."""
    samples: int = 0
    """Samples handed out."""
    skipped_windows: list[int] = field(default_factory=list)
    """Sample positions that are left out of the order."""
    rollbacks: int = 0
    """How often a spike sent the run back."""
    recent_losses: list[float] = field(default_factory=list)
    """The losses that the next one is compared with."""
    skips_in_a_row: int = 0
    """Steps up to this one whose update was not finite."""
    time_s: float = 0.0
    """Training time of all starts up to here."""
    look_s: float = 0.0
    """How long the last evaluation took, with its samples of text."""
    interval: dict[str, list[float]] = field(default_factory=dict)
    """The log interval that the checkpoint cut in two."""
    segments: list[Segment] = field(default_factory=list)
    """The stretches of the run with one batch size each, the present one last."""
    best: Best | None = None
    val_loss: float | None = None
    """What the evaluation after this very step found, if there was one."""

    def advance(self, samples: int) -> None:
        """One more step is done."""
        self.step += 1
        self.samples += samples
        self.val_loss = None

    def note_save(self) -> None:
        """A checkpoint is about to be written: it may be the best."""
        if self.val_loss is None or not math.isfinite(self.val_loss):
            return
        if self.best is None or self.val_loss < self.best.val_loss:
            self.best = Best(self.step, self.val_loss)

    def ledger(
        self, *, lr: float, total_steps: int, loss_scaler: dict[str, Any], interval: dict[str, list[float]]
    ) -> dict[str, Any]:
        """As the checkpoint keeps it, in JSON, which has no word for what is not finite.

        lr is that of the last update and total_steps the run's length, to tell a changed schedule from the
        old one; loss_scaler is fp16's; interval is the unfinished log interval.
        """
        return {
            "lr": lr,
            "total_steps": total_steps,
            "step": self.step,
            "samples": self.samples,
            "skipped_windows": self.skipped_windows,
            "rollbacks": self.rollbacks,
            "recent_losses": self.recent_losses,
            "skips_in_a_row": self.skips_in_a_row,
            "time_s": self.time_s,
            "look_s": self.look_s,
            "loss_scaler": loss_scaler,
            "interval": {kind: [finite_or_none(value) for value in values] for kind, values in interval.items()},
            "segments": [asdict(segment) for segment in self.segments],
            "val_loss": None if self.val_loss is None else finite_or_none(self.val_loss),
            "best": self.best and asdict(self.best),
        }

    @classmethod
    def from_ledger(cls, ledger: dict[str, Any]) -> "TrainState":
        """Where a checkpoint left off."""
        return cls(
            step=ledger["step"],
            samples=ledger["samples"],
            skipped_windows=list(ledger["skipped_windows"]),
            rollbacks=ledger.get("rollbacks", 0),  # older ledgers lack these five
            recent_losses=list(ledger.get("recent_losses", ())),
            skips_in_a_row=ledger.get("skips_in_a_row", 0),
            time_s=ledger.get("time_s", 0.0),
            look_s=ledger.get("look_s", 0.0),
            interval={
                kind: [math.nan if value is None else value for value in values]
                for kind, values in ledger["interval"].items()
            },
            segments=[Segment(**segment) for segment in ledger["segments"]],
            best=Best(**ledger["best"]) if ledger["best"] else None,
            val_loss=ledger["val_loss"],
        )

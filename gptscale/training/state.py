"""What a run has to remember besides tensors."""

import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter

from gptscale.training.plan import Segment

Measured = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number that may be none, for which JSON has null."""


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
    lr: float = 0.0
    """The rate of the last update; beside total_steps it tells a resume whether the schedule was changed."""
    total_steps: int = 0
    """The run's length, as it was planned."""
    loss_scaler: dict[str, Any] = field(default_factory=dict)
    """fp16's loss scale; empty in other precisions."""
    interval: dict[str, list[Measured]] = field(default_factory=dict)
    """The log interval that the checkpoint cut in two."""
    segments: list[Segment] = field(default_factory=list)
    """The stretches of the run with one batch size each, the present one last."""
    val_loss: float | None = None
    """What the evaluation after this very step found, if there was one."""
    best: Best | None = None

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

    def ledger(self) -> dict[str, Any]:
        """As the checkpoint keeps it, in JSON, which has null for what is not finite."""
        return json.loads(_STATE.dump_json(self))  # type: ignore[no-any-return]

    @classmethod
    def from_ledger(cls, ledger: dict[str, Any]) -> "TrainState":
        """Where a checkpoint left off; what an older ledger lacks is as at the start."""
        return _STATE.validate_python(ledger)


_STATE = TypeAdapter(TrainState)

"""What checkpoints cost the training beside them."""

from collections import deque
from statistics import mean, median

from gptscale.checkpoint.store import Saved
from gptscale.runtime.span import Span

REMEMBERED_STEPS = 50


class SaveCost:
    """Compares steps during which a checkpoint was being written with the others."""

    def __init__(self) -> None:
        self._free: deque[Span] = deque(maxlen=REMEMBERED_STEPS)
        self._beside: list[Span] = []
        self.longest_s: float | None = None
        """The longest that a checkpoint took until it was safe; null before the first."""

    def add(self, step: Span, *, writing: bool) -> None:
        """Count a step."""
        (self._beside if writing else self._free).append(step)

    def measured(self, saved: Saved) -> dict[str, float]:
        """A save as measurements of a record; the slowdown is that of the steps beside it, 0.1 for a tenth longer."""
        self.longest_s = max(self.longest_s or 0.0, saved.durable_s)
        record = {
            "checkpoint/step": float(saved.step),
            "checkpoint/bytes": float(saved.bytes),
            "checkpoint/stall_s": saved.stall_s,
            "checkpoint/durable_s": saved.durable_s,
        }
        if self._beside and self._free:
            slow, usual = (mean(s.seconds() for s in self._beside), median(s.seconds() for s in self._free))
            record["checkpoint/slowdown"] = slow / usual - 1
        self._beside.clear()
        return record

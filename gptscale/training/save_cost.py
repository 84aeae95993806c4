"""What checkpoints cost the training beside them."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean, median

from gptscale.checkpoint.store import Saved

REMEMBERED_STEPS = 50


class SaveCost:
    """Times steps, apart for those during which a checkpoint was being written."""

    def __init__(self) -> None:
        self._free_s: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        self._writing_s: list[float] = []
        self.longest_s: float | None = None
        """The longest that a checkpoint took until it was safe; null before the first."""

    @contextmanager
    def step(self, writing: bool) -> Iterator[None]:
        """Time one step; on CUDA the time to hand it to the device, which keeps pace over many."""
        start = time.perf_counter()
        yield
        (self._writing_s if writing else self._free_s).append(time.perf_counter() - start)

    def measured(self, saved: Saved) -> dict[str, float]:
        """A save as measurements of a record; the slowdown is that of the steps beside it, 0.1 for a tenth longer."""
        self.longest_s = max(self.longest_s or 0.0, saved.durable_s)
        record = {
            "checkpoint/step": float(saved.step),
            "checkpoint/bytes": float(saved.bytes),
            "checkpoint/stall_s": saved.stall_s,
            "checkpoint/durable_s": saved.durable_s,
        }
        if self._writing_s and self._free_s:
            record["checkpoint/slowdown"] = mean(self._writing_s) / median(self._free_s) - 1
        self._writing_s.clear()
        return record

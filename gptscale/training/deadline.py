"""The end of a run's time: when it has to stop to be gone, with a checkpoint, before it is ended."""

import time
from collections.abc import Callable

from gptscale.config.schema import Config
from gptscale.runtime.slurm import job_end

LEAVING_S = 15.0
"""To part from the other ranks and from W&B after the last checkpoint, before a scheduler kills what is left."""

UNMEASURED_BYTES_PER_S = 100e6
"""A slow disk, until a checkpoint of this start has been timed."""

DOUBT = 1.5
"""How much longer than the longest so far a step and a checkpoint may take."""


STOPPED_ELSEWHERE = "a rank was asked to stop"
"""Why a run stops whose first rank neither was asked to nor has to."""


class Deadline:
    """Says on one rank whether there is time for another step; the ranks agree on it with everything else.

    Between two questions lies all that happens in a step, with its evaluation; the longest such time so far is
    what the next one is given. The first is left out, since a compiler may work in it.
    """

    def __init__(
        self,
        end: float | None = None,
        reason: str = STOPPED_ELSEWHERE,
        guessed_save_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """End is on the given clock, null for none; guessed_save_s counts until a checkpoint was timed."""
        self.end = end
        self.reason = reason
        self._guessed_save_s = guessed_save_s
        self._clock = clock
        self._asked: float | None = None
        self._questions = 0
        self._longest_s = 0.0
        self.over = False
        """Whether the answer was yes."""

    def pause(self) -> None:
        """The time up to the next question is that of no step."""
        self._asked = None

    def near(self, save_s: float | None, *, writing: bool = False, look_s: float = 0.0) -> bool:
        """Whether to stop now; ask every step.

        save_s is the longest that a checkpoint took, null if none was timed. One that is being written counts besides,
        since the last one waits for it. look_s is what an evaluation took, where one follows the next step: this start
        may not have met any yet. At the first question it does not count: nothing would be lost with that step, and a
        run whose starts are all too short for a slow evaluation, or for one that was made shorter, would stand still.
        """
        now, before = self._clock(), self._asked
        self._asked = now
        self._questions += 1
        if before is not None and self._questions > 2:
            self._longest_s = max(self._longest_s, now - before)
        if self.end is None:
            return False
        saving_s = (self._guessed_save_s if save_s is None else save_s) * (2 if writing else 1)
        step_s = max(self._longest_s, look_s if self._questions > 1 else 0.0)
        self.over = now + DOUBT * (step_s + saving_s) > self.end
        return self.over


def open_deadline(cfg: Config, parameters: int, started: float) -> Deadline:
    """The nearer of run.stop_after, from `started` on, and the end of the SLURM job.

    All on the clock of `time.monotonic`: somebody may set the time of day in the middle of a run.
    """
    guessed_save_s = 12 * parameters / UNMEASURED_BYTES_PER_S
    ends = []
    if cfg.run.stop_after_s is not None:
        ends.append((started + cfg.run.stop_after_s, f"run.stop_after={cfg.run.stop_after} is nearly over"))
    if (end := job_end()) is not None:
        at = time.monotonic() + end - time.time()
        ends.append((at - LEAVING_S, f"the job ends at {time.strftime('%H:%M:%S', time.localtime(end))}"))
    return Deadline(*min(ends), guessed_save_s) if ends else Deadline()

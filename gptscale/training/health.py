"""The health of a run: steps that were skipped, losses that leap, and what is done about them.

Everything here is decided from losses that were summed over the ranks and from global gradient norms, so all ranks
decide the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from gptscale.config.watching import HealthConfig
from gptscale.data.order import positions_of
from gptscale.errors import TrainingError
from gptscale.training.plan import Plan
from gptscale.training.state import TrainState

NORMAL = 1.4826
"""The standard deviation of a normal distribution in median absolute deviations."""

LEAST_DEVIATION = 0.01
"""Of the median: smaller ones count as this, so that a loss that stands still has no spikes in its noise."""


@dataclass(frozen=True)
class Spike:
    """A loss far above those before it."""

    step: int
    loss: float
    z: float
    """Robust standard score."""


class Rollback(Exception):  # noqa: N818  # no error: the run goes on
    """The run is to go on from its last checkpoint, without some samples. All ranks raise it together."""

    def __init__(self, spike: Spike, positions: list[int]) -> None:
        super().__init__(f"loss {spike.loss:.3f} at step {spike.step} lies {spike.z:.1f} deviations above the median")
        self.spike = spike
        self.positions = positions
        """Sample positions to leave out."""


class Health:
    """Judges steps in their order, once each."""

    def __init__(self, cfg: HealthConfig, state: TrainState) -> None:
        self._cfg = cfg
        self._state = state
        self._judged = state.step

    def judge(self, first_step: int, losses: Sequence[float], finite: Sequence[bool]) -> tuple[int, list[Spike]]:
        """Look at the steps from first_step on; gives how many of them were skipped, and the new spikes.

        Steps that were judged before count only among the skipped. Raises TrainingError when too many were
        skipped in a row.
        """
        spikes = []
        for step, (loss, sound) in enumerate(zip(losses, finite, strict=True), start=first_step):
            if step <= self._judged:
                continue
            self._judged = step
            self._count_row(step, sound)
            if sound and math.isfinite(loss):
                z = self._z(loss)
                if z > self._cfg.spike_z:
                    spikes.append(Spike(step, loss, z))
                self._state.recent_losses = [*self._state.recent_losses, loss][-self._cfg.spike_window :]
        return sum(not sound for sound in finite), spikes

    def rollback(self, spikes: Sequence[Spike], plan: Plan) -> Rollback | None:
        """What to raise for new spikes, if the config asks for it and the run has some left."""
        if not spikes or not self._cfg.rollback or self._state.rollbacks >= self._cfg.max_rollbacks:
            return None
        first, last = spikes[0].step - 2, spikes[-1].step  # the step before the first may have done the harm
        handed_out = np.arange(plan.samples_at(first), plan.samples_at(last))
        return Rollback(spikes[0], positions_of(handed_out, self._state.skipped_windows).tolist())

    def _count_row(self, step: int, sound: bool) -> None:
        self._state.skips_in_a_row = 0 if sound else self._state.skips_in_a_row + 1
        limit = self._cfg.stop_after_skips
        if limit is not None and self._state.skips_in_a_row >= limit:
            raise TrainingError(
                f"the updates of {limit} steps in a row, up to step {step}, were not finite; none reached the weights, "
                "and the last checkpoint is from before. Lower optim.lr_peak, lengthen optim.warmup_steps or set "
                "optim.clip_norm, or raise health.stop_after_skips; then start again to go on from it"
            )

    def _z(self, loss: float) -> float:
        before = self._state.recent_losses
        if len(before) < self._cfg.spike_window // 4:
            return 0.0
        middle = median(before)
        deviation = NORMAL * median(abs(x - middle) for x in before)
        return (loss - middle) / max(deviation, LEAST_DEVIATION * abs(middle), 1e-12)

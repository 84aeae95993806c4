"""What happened since the last record: loss, gradient norm, speed, time, memory."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gptscale.runtime.device import peak_memory_bytes, synchronize
from gptscale.runtime.engine import Engine
from gptscale.runtime.span import Span
from gptscale.training.plan import Plan
from gptscale.training.step import StepResult


class Meter:
    """Collects steps on the device; `read` fetches them and is the training loop's only wait for the device."""

    def __init__(
        self, engine: Engine, plan: Plan, flops_per_token: int, peak_flops: float, clip_norm: float | None = None
    ) -> None:
        self._engine = engine
        self._plan = plan
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops * plan.world
        self._clip_norm = clip_norm
        self._losses: list[float] = []
        """Of the interval's steps that were fetched already, the mean over all ranks."""
        self._norms: list[float] = []
        self._new: list[StepResult] = []
        self._elapsed_s = self._data_s = 0.0
        self._spans: list[Span] = []
        """Of the steps since the last record."""
        self._since = time.perf_counter()
        self.total_s = 0.0
        """Training time so far, without evaluations and checkpoints; resumes add up."""

    def start(self) -> None:
        """Let the time of training begin now."""
        self._since = time.perf_counter()

    def add(self, result: StepResult) -> None:
        """Count one step."""
        self._new.append(result)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what the loop waits for data in."""
        start = time.perf_counter()
        yield
        self._data_s += time.perf_counter() - start

    @contextmanager
    def computing(self) -> Iterator[Span]:
        """Around a step; gives how long it takes."""
        with Span(self._engine.device) as span:
            yield span
        self._spans.append(span)

    def fetch(self) -> tuple[list[float], list[bool]]:
        """The loss of every step of the interval so far, and whether its gradient was finite. All ranks call this."""
        if self._new:
            losses = self._engine.sum_over_ranks(torch.stack([result.loss for result in self._new]))
            norms = torch.stack([result.grad_norm.to(losses) for result in self._new])
            fetched = torch.stack([losses, norms]).tolist()
            self._losses += fetched[0]
            self._norms += fetched[1]
            self._new.clear()
        return self._losses, [math.isfinite(norm) for norm in self._norms]

    def read(self, lr: float) -> dict[str, float]:
        """The interval as a training record, and start the next. All ranks call this.

        Means are over the steps whose gradient was finite; the others changed nothing.
        """
        losses, finite = self.fetch()
        loss = _mean([x for x, sound in zip(losses, finite, strict=True) if sound])
        norms = [norm for norm, sound in zip(self._norms, finite, strict=True) if sound]
        record = {
            "train/loss": loss,
            "train/perplexity": math.exp(min(loss, 700.0)),
            "train/lr": lr,
            "train/grad_norm": self._norms[-1],
            "train/grad_norm_mean": _mean(norms),
            **self._speed(),
        }
        if self._clip_norm is not None:
            record["train/clipped_share"] = _mean([float(norm > self._clip_norm) for norm in norms])
        if scaler := self._engine.scaler_state():
            record["train/loss_scale"] = scaler["scale"]
        self._losses, self._norms = [], []
        return record

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for what is not training."""
        self._stop_clock()
        yield
        self._since = time.perf_counter()

    def interval(self) -> dict[str, list[float]]:
        """The unfinished interval as it is now, for a ledger that is written later. All ranks call this."""
        self.fetch()
        return {"losses": list(self._losses), "norms": list(self._norms)}

    def restore(self, interval: dict[str, list[float]], total_s: float) -> None:
        """Go on with an unfinished interval, so that a resumed run's record has the same means."""
        self._losses, self._norms = list(interval.get("losses", ())), list(interval.get("norms", ()))
        self.total_s = total_s

    def _speed(self) -> dict[str, float]:
        """Rates, seconds a step and memory since the last record. All ranks call this.

        The times are those of the rank that waited longest for data, since all others waited for it; memory is the
        most that a rank needed.
        """
        elapsed_s, steps = self._stop_clock(), len(self._spans)
        rate = steps * self._plan.tokens_per_step / elapsed_s
        compute_s = sum(span.seconds() for span in self._spans)
        idle_s = min(self._data_s, max(0.0, elapsed_s - compute_s))  # what the device had no data for
        idle, compute, peaks = self._engine.each_rank(idle_s, compute_s, peak_memory_bytes(self._engine.device))
        data_s = max(idle)
        rank = idle.index(data_s)
        self._elapsed_s = self._data_s = 0.0
        self._spans.clear()
        record = {
            "train/tokens_per_s": rate,
            "train/tokens_per_s_per_gpu": rate / self._plan.world,
            "train/mfu": rate * self._flops_per_token / self._peak_flops,
            "time/data_s": data_s / steps,
            "time/compute_s": compute[rank] / steps,
            "time/rest_s": max(0.0, elapsed_s - compute[rank] - data_s) / steps,
            "memory/peak_bytes": max(peaks),
        }
        return record | {"time/data_rank": rank} if self._plan.world > 1 else record

    def _stop_clock(self) -> float:
        synchronize(self._engine.device)
        now = time.perf_counter()
        self._elapsed_s += now - self._since
        self.total_s += now - self._since
        self._since = now
        return self._elapsed_s


def _mean(values: list[float]) -> float:
    """nan of nothing, so that an interval without a sound step is a gap in the curves."""
    return math.fsum(values) / len(values) if values else math.nan

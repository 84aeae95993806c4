"""What happened since the last record: loss, gradient norm, speed."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gptscale.errors import TrainingError
from gptscale.runtime.device import synchronize
from gptscale.runtime.engine import Engine
from gptscale.training.plan import Plan
from gptscale.training.step import StepResult


class Meter:
    """Collects steps on the device; `read` fetches them and is the training loop's only wait for the device."""

    def __init__(self, engine: Engine, plan: Plan, flops_per_token: int, peak_flops: float) -> None:
        self._engine = engine
        self._plan = plan
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops * plan.world
        self._loss = torch.zeros((), device=engine.device)
        self._grad_norm = torch.zeros((), device=engine.device)
        self._bad_updates = torch.zeros((), device=engine.device)
        self._steps = 0
        self._timed_steps = 0
        self._elapsed_s = 0.0
        self._since = time.perf_counter()
        self.total_s = 0.0
        """Training time of this process so far, without evaluations and checkpoints."""

    def add(self, result: StepResult) -> None:
        """Count one step."""
        self._loss += result.loss
        self._grad_norm = result.grad_norm
        if self._engine.dtype != torch.float16:  # fp16's loss scaling overflows now and then, and skips by itself
            self._bad_updates += ~torch.isfinite(result.grad_norm)
        self._steps += 1
        self._timed_steps += 1

    def read(self, step: int, lr: float) -> dict[str, float]:
        """The interval that ends with `step` as a training record, and start the next. All ranks call this.

        Raises TrainingError if a loss or an unscaled gradient was not finite.
        """
        loss = float(self._engine.total(self._loss)) / self._steps
        self._check(loss, step)
        elapsed_s = self._stop_clock()
        rate = self._timed_steps * self._plan.tokens_per_step / elapsed_s
        record = {
            "train/loss": loss,
            "train/perplexity": math.exp(min(loss, 700.0)),
            "train/lr": lr,
            "train/grad_norm": float(self._grad_norm),
            "train/tokens_per_s": rate,
            "train/mfu": rate * self._flops_per_token / self._peak_flops,
        }
        self._loss.zero_()
        self._steps = self._timed_steps = 0
        self._elapsed_s = 0.0
        return record

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for what is not training."""
        self._stop_clock()
        yield
        self._since = time.perf_counter()

    def check(self, step: int) -> None:
        """Raise TrainingError if something since the last record was not finite. All ranks call this."""
        if self._steps:
            self._check(float(self._engine.total(self._loss)) / self._steps, step)

    def interval(self) -> dict[str, float]:
        """The unfinished interval, for the checkpoint's ledger. All ranks call this."""
        return {"steps": self._steps, "loss": float(self._engine.total(self._loss))}

    def restore(self, interval: dict[str, float]) -> None:
        """Go on with an unfinished interval, so that a resumed run's record has the same means."""
        self._steps = int(interval["steps"])
        if self._engine.is_first:
            self._loss += interval["loss"]

    def _stop_clock(self) -> float:
        synchronize(self._engine.device)
        now = time.perf_counter()
        self._elapsed_s += now - self._since
        self.total_s += now - self._since
        self._since = now
        return self._elapsed_s

    def _check(self, loss: float, step: int) -> None:
        if math.isfinite(loss) and not float(self._bad_updates):
            return
        what = f"loss is {loss}" if not math.isfinite(loss) else "a gradient was not finite"
        raise TrainingError(
            f"{what} within the {self._steps} steps up to step {step}; no such update reached the weights, "
            "and the last checkpoint is from before. Lower optim.lr_peak, lengthen optim.warmup_steps, or set "
            "optim.clip_norm; then start again to go on from it"
        )

"""The training loop: what happens, and how often. How is one call away."""

import time
from dataclasses import dataclass

from gptscale.checkpoint.fence import Fence
from gptscale.checkpoint.store import Store
from gptscale.config.schema import Config
from gptscale.data.corpora import Corpora
from gptscale.data.loader import MicroBatch, StepLoader
from gptscale.data.tokenizer import Tokenizer
from gptscale.errors import GptscaleError, TrainingError
from gptscale.model.gpt import GPTModel
from gptscale.runtime.device import keeping_freed_memory
from gptscale.runtime.engine import Engine
from gptscale.runtime.preempt import StopRequest
from gptscale.runtime.ranks import raise_together
from gptscale.tracking.tracker import Tracker
from gptscale.training.deadline import Deadline
from gptscale.training.health import Health, Rollback, Spike
from gptscale.training.histograms import HistogramTaker
from gptscale.training.look import Look
from gptscale.training.meter import Meter
from gptscale.training.plan import Plan
from gptscale.training.profile import StepProfile
from gptscale.training.save_cost import SaveCost
from gptscale.training.schedule import lr_at
from gptscale.training.state import TrainState
from gptscale.training.step import train_step


@dataclass(frozen=True)
class Start:
    """What one start of a run works with, from its beginning over all its rollbacks."""

    cfg: Config
    corpora: Corpora
    engine: Engine
    model: GPTModel
    tokenizer: Tokenizer
    stop: StopRequest
    deadline: Deadline
    fence: Fence
    store: Store
    save_cost: SaveCost


@dataclass(frozen=True)
class Run(Start):
    """Everything that a training loop works with, up to a rollback or its end; made by `train`."""

    plan: Plan
    loader: StepLoader
    look: Look
    health: Health
    meter: Meter
    tracker: Tracker
    histograms: HistogramTaker
    profile: StepProfile


def fit(run: Run, state: TrainState) -> bool:
    """Train to the last step or until a stop signal; says whether it got to the last. All ranks call this together."""
    try:
        with keeping_freed_memory(run.engine.device):
            finished = _fit(run, state)
    except Exception as error:
        if isinstance(error, GptscaleError | Rollback) or run.engine.world == 1:  # which all ranks raise together
            run.store.finish()  # a checkpoint on its way is from before
        raise
    _settle_save(run, state, wait=True)
    run.engine.agree(run.tracker.flush)
    return finished


def _fit(run: Run, state: TrainState) -> bool:
    cfg, total_steps, first_step = run.cfg, run.plan.total_steps, state.step
    due = False
    run.meter.start()
    if state.step == 0:
        _look(run, state)
    _profile(run, state.step)
    while state.step < total_steps:
        batches, stopping = _next_batches(run, state)
        if stopping:
            if state.step > first_step:
                _save(run, state)
            return False
        lr = lr_at(state.step, cfg.optim, total_steps)
        observed = run.histograms.of(state.step + 1)
        writing = run.store.writing
        with run.meter.computing() as span, observed:
            result = train_step(
                run.engine,
                run.plan,
                batches,
                seed=cfg.run.seed,
                step=state.step,
                lr=lr,
                clip_norm=cfg.optim.clip_norm,
            )
        state.advance(run.plan.sequences_per_step)
        run.save_cost.add(span, writing=writing)
        run.meter.add(result)
        _profile(run, state.step)
        last = state.step == total_steps

        if found := run.histograms.take(result):
            run.tracker.histograms(_progress(run, state), found)
        if last or _every(state.step, cfg.train.log_every_steps):
            _measure(run, state, lr)
        if _looks_at(run, state.step):
            _look(run, state)
        due = due or last or _every(state.step, cfg.checkpoint.every_steps)
        if due:
            due = not _save(run, state, sound=not last)
    if due:
        raise TrainingError(
            f"the updates of all {state.step} steps were not finite, so there is nothing to keep; lower optim.lr_peak, "
            "lengthen optim.warmup_steps or set optim.clip_norm"
        )
    return True


def _next_batches(run: Run, state: TrainState) -> tuple[list[MicroBatch], bool]:
    """This rank's micro-batches of the next step, and whether a rank was asked to stop.

    Raises on all ranks what reading them raised on any. A save in flight is taken on by the way, in the same exchange.
    """
    batches: list[MicroBatch] = []
    failure = None
    try:
        with run.meter.waiting():
            batches = run.loader.next_step()
        if run.engine.is_first:
            run.fence.check()
        run.tracker.check()
    except Exception as error:
        failure = error
    look_s = state.look_s if _looks_at(run, state.step + 1) else 0.0
    stopping, failed, writing = run.engine.any_rank(
        run.stop.received is not None
        or run.deadline.near(run.save_cost.longest_s, writing=run.store.writing, look_s=look_s),
        failure is not None,
        run.store.writing,
    )
    if failed:
        raise_together(failure)
    if not writing:
        _settle_save(run, state)
    return batches, stopping


def _profile(run: Run, step: int) -> None:
    """Let a profile begin, go on or end; its beginning and its end are no training, and no time that a step takes."""
    if not run.profile.turns_at(step):
        run.profile.at(step)
        return
    with run.meter.paused():
        run.profile.at(step)
    run.deadline.pause()


def _every(step: int, interval: int | None) -> bool:
    return interval is not None and step % interval == 0


def _looks_at(run: Run, step: int) -> bool:
    return step == run.plan.total_steps or _every(step, run.cfg.eval.every_steps)


def _log(run: Run, state: TrainState, measured: dict[str, float]) -> None:
    run.tracker.log({**_progress(run, state), **measured})


def _progress(run: Run, state: TrainState) -> dict[str, float]:
    """What every record begins with."""
    return {
        "step": state.step,
        "tokens": run.plan.tokens_at(state.step),
        "epoch": run.plan.epoch_at(state.step),
        "time_s": run.meter.total_s,
        **run.loader.sampler.epochs(state.samples),
    }


def _measure(run: Run, state: TrainState, lr: float) -> None:
    """Record the interval that ends here."""
    skipped = _judge(run, state)
    _log(run, state, {**run.meter.read(lr), "health/skipped_steps": skipped})


def _judge(run: Run, state: TrainState) -> int:
    """Look at the steps of the interval so far; says how many were skipped. A spike is recorded or ends this life.

    Raises Rollback, and TrainingError if the run is past help; all ranks together.
    """
    losses, finite = run.meter.fetch()
    skipped, spikes = run.health.judge(state.step - len(losses) + 1, losses, finite)
    rollback = run.health.rollback(spikes, run.plan)
    if rollback is not None and run.store.has_checkpoint():
        raise rollback
    if spikes:
        _log(run, state, _spike_record(max(spikes, key=lambda spike: spike.z), len(spikes)))
    return skipped


def _spike_record(spike: Spike, count: int) -> dict[str, float]:
    """Spikes as measurements of a record: how many, and the worst of them."""
    return {
        "health/spikes": count,
        "health/spike_step": spike.step,
        "health/spike_loss": spike.loss,
        "health/spike_z": spike.z,
    }


def record_rollback(run: Run, state: TrainState, rollback: Rollback) -> None:
    """Note at the checkpoint's step what sent the run back to it; a later resume cuts off only what comes after."""
    _log(run, state, {**_spike_record(rollback.spike, 1), "health/skipped_samples": len(rollback.positions)})


def _look(run: Run, state: TrainState) -> None:
    """Evaluate, and write a sample of text."""
    began = time.monotonic()
    with run.meter.paused():
        measured = run.look.evaluate()
        state.val_loss = measured["val/loss"]
        _log(run, state, measured)
        for prompt, text in run.look.samples(state.step):
            run.tracker.sample(state.step, prompt, text)
    state.look_s = time.monotonic() - began


def _save(run: Run, state: TrainState, *, sound: bool = False) -> bool:
    """Begin a checkpoint, after the one before is safe; says whether: a sound one waits in a row of skipped steps."""
    _judge(run, state)
    no_update_yet = state.skips_in_a_row >= state.step  # not every optimizer has a state to keep
    if no_update_yet or (sound and state.skips_in_a_row):
        return False
    with run.meter.paused():
        _settle_save(run, state, wait=True)
        state.time_s = run.meter.total_s
        run.engine.agree(run.tracker.flush)  # the record is never behind the checkpoint
        state.lr = lr_at(state.step - 1, run.cfg.optim, run.plan.total_steps)
        state.total_steps = run.plan.total_steps
        state.loss_scaler = run.engine.scaler_state()
        state.interval = run.meter.interval()
        state.note_save()
        run.store.save(state.step, state.ledger(), run.engine.owned_fragments())
    return True


def _settle_save(run: Run, state: TrainState, *, wait: bool = False) -> None:
    """Take the save in flight on, or to its end; once it is safe, record what it cost."""
    saved = run.store.finish() if wait else run.store.settle()
    if saved is not None:
        _log(run, state, run.save_cost.measured(saved))

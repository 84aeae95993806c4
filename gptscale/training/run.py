"""One run from its config: open the corpus, join the ranks, resume, train, leave a record."""

import gc
import signal
import time
from contextlib import ExitStack, closing

import numpy as np
import torch

from gptscale.checkpoint.fence import Fence
from gptscale.checkpoint.find import newest_good
from gptscale.checkpoint.store import Store
from gptscale.config.schema import Config
from gptscale.data.corpora import Corpora, check_corpora, open_corpora
from gptscale.data.loader import StepLoader
from gptscale.data.order import positions_of
from gptscale.data.tokenizer import load_tokenizer
from gptscale.errors import GptscaleError
from gptscale.model.gpt import unfilled_model
from gptscale.model.size import flops_per_token
from gptscale.runtime import ranks
from gptscale.runtime.compiled import find_compiled
from gptscale.runtime.device import describe_device, peak_flops
from gptscale.runtime.distributed import start_engine
from gptscale.runtime.engine import Engine
from gptscale.runtime.launch import launched_rank, launched_world
from gptscale.runtime.preempt import StopRequest
from gptscale.runtime.telling import explaining, note_lost
from gptscale.tracking.beside import Beside
from gptscale.tracking.console import Console
from gptscale.tracking.fenced import Fenced
from gptscale.tracking.jsonl import JsonlSink
from gptscale.tracking.provenance import package_versions
from gptscale.tracking.tensorboard import TensorboardSink
from gptscale.tracking.tracker import Tracker
from gptscale.tracking.wandb import wandb_beside
from gptscale.training.deadline import STOPPED_ELSEWHERE, Deadline, open_deadline
from gptscale.training.folder import is_done, mark_done, open_folder, take_over
from gptscale.training.health import Health, Rollback
from gptscale.training.histograms import HistogramTaker
from gptscale.training.look import Look
from gptscale.training.loop import Run, Start, fit, record_rollback
from gptscale.training.meter import Meter
from gptscale.training.micro_batch import with_micro_batch
from gptscale.training.optimizer import build_optimizer
from gptscale.training.plan import Plan, make_plan
from gptscale.training.profile import StepProfile
from gptscale.training.resume import check_goes_on, resume
from gptscale.training.save_cost import SaveCost
from gptscale.training.segments import likely_segment
from gptscale.training.state import TrainState
from gptscale.training.summary import summary


def train(cfg: Config) -> bool:
    """Train, or go on with the run in run.dir; says whether the last step was reached.

    Under a launcher every process calls this. A stop signal ends it early, with a checkpoint; after
    Ctrl-C that is a KeyboardInterrupt.
    """
    with StopRequest() as stop, explaining("lower train.micro_batch_sequences, or shard over more ranks"):
        ranks.join()
        finished = _train_together(cfg, stop)
    if stop.received is signal.SIGINT and not finished:
        raise KeyboardInterrupt
    return finished


def _train_together(cfg: Config, stop: StopRequest) -> bool:
    corpora = ranks.agree(lambda: check_corpora(open_corpora(cfg), cfg))
    ranks.agree(lambda: check_goes_on(cfg, corpora.fingerprint) if launched_rank() == 0 else None)
    cfg = with_micro_batch(cfg)
    segment = ranks.gather(ranks.agree(lambda: likely_segment(cfg) if launched_rank() == 0 else None))[0]
    plan = make_plan(cfg, corpora.sampler(cfg).samples, launched_world(), segment)
    engine = start_engine(
        cfg.train.precision,
        plan.accumulation,
        micro_batch_sequences=plan.micro_batch_sequences,
        clip_norm=cfg.optim.clip_norm,
    )
    try:
        finished = _train(cfg, corpora, plan, engine, stop)
    except BaseException as error:
        engine.close(together=isinstance(error, GptscaleError))
        raise
    engine.close()
    ranks.leave()
    return finished


def _train(cfg: Config, corpora: Corpora, plan: Plan, engine: Engine, stop: StopRequest) -> bool:
    started = time.monotonic()
    tokenizer = engine.agree(lambda: load_tokenizer(cfg.data.tokenizer))
    torch.set_float32_matmul_precision("high" if cfg.train.tf32 else "highest")
    if cfg.train.compile:
        find_compiled(engine)
    model = unfilled_model(cfg.model)  # each rank fills what it holds of it: from a checkpoint, a seed or other weights
    model.recompute = cfg.train.activation_checkpointing
    engine.prepare(model, build_optimizer(model, cfg.optim, engine.device), cfg.train.compile)
    for line in summary(cfg, plan, engine, model, corpora):
        engine.say(line)
    fence = take_over(cfg.run.dir, engine)
    with closing(_open_store(cfg, engine, corpora, fence)) as store:
        deadline = open_deadline(cfg, model.num_parameters(), started) if engine.is_first else Deadline()
        start = Start(cfg, corpora, engine, model, tokenizer, stop, deadline, fence, store, SaveCost())
        cause: Rollback | None = None
        while True:
            try:
                return _go_on(start, plan, cause)
            except Rollback as spike:
                cause = _leave_out(store, engine, spike)


def _go_on(start: Start, plan: Plan, cause: Rollback | None) -> bool:
    """Train from the newest checkpoint on; cause is the spike that sent the run back to it, if one did."""
    cfg, engine = start.cfg, start.engine
    state, plan = resume(cfg, start.corpora.fingerprint, engine, plan)
    if state.step >= plan.total_steps:
        engine.say(f"{cfg.run.dir} is finished: step {state.step} of {plan.total_steps}; a longer train.* goes on")
        engine.agree(lambda: _tell_the_rest(start, plan, state) if engine.is_first else None)
        finished = True
    else:
        finished = _live(start, plan, state, cause)
    if finished:
        engine.agree(lambda: mark_done(cfg.run.dir, start.fence, state.step) if engine.is_first else None)
    else:
        kept = " with a checkpoint" if start.store.has_checkpoint() else ""
        why = "" if start.stop.received else f"{start.deadline.reason if start.deadline.over else STOPPED_ELSEWHERE}: "
        engine.say(f"{why}stopped at step {state.step}{kept}; the same command goes on from there")
    return finished


def _live(start: Start, plan: Plan, state: TrainState, cause: Rollback | None) -> bool:
    """Open what watches and feeds the loop, and enter it."""
    cfg, engine, model = start.cfg, start.engine, start.model
    start.deadline.pause()
    engine.agree(lambda: _begin(start, state, cause) if engine.is_first else None)
    peak = peak_flops(engine.device, engine.dtype)
    meter = Meter(engine, plan, flops_per_token(cfg.model), peak, cfg.optim.clip_norm)
    meter.restore(state.interval, state.time_s)
    with ExitStack() as stack:
        tracker = stack.enter_context(engine.agree(lambda: _open_tracker(start, plan, state)))
        loader = stack.enter_context(_open_loader(cfg, start.corpora, plan, engine, state))
        watched = StepProfile(cfg.run.dir, engine, cfg.train.profile_at_step, state.step, plan.total_steps)
        profile = stack.enter_context(watched)
        run = Run(
            **vars(start),
            plan=plan,
            loader=loader,
            look=Look(cfg, engine, model, start.corpora, start.tokenizer),
            health=Health(cfg.health, state),
            meter=meter,
            tracker=tracker,
            histograms=HistogramTaker(engine, cfg.train.histograms_every_steps),
            profile=profile,
        )
        if cause is not None:
            record_rollback(run, state, cause)
        gc.freeze()  # what is here stays to the end; the collector need not look at it again and again
        stack.callback(gc.unfreeze)
        stack.push(lambda kind, error, trace: note_lost(error))
        try:
            return fit(run, state)
        except Rollback as spike:
            rollback = spike  # no failure: what watches the run closes as at a good end
    raise rollback


def _leave_out(store: Store, engine: Engine, cause: Rollback) -> Rollback:
    """Write into the last checkpoint which samples are left out from now on; gives what is. All ranks call this."""
    found = newest_good(store.run_dir, engine, engine.say)
    assert found is not None, "the loop has looked for one"
    path, manifest = found
    before = manifest.ledger["skipped_windows"]
    first = int(positions_of(np.array([manifest.ledger["samples"]]), before)[0])  # those before it were handed out
    positions = [position for position in cause.positions if position >= first]
    rollbacks = manifest.ledger.get("rollbacks", 0) + 1
    store.amend(path, skipped_windows=sorted({*before, *positions}), rollbacks=rollbacks)
    engine.say(f"{cause}: going back to {path} and leaving out {len(positions)} samples")
    return Rollback(cause.spike, positions)


def _open_store(cfg: Config, engine: Engine, corpora: Corpora, fence: Fence) -> Store:
    return Store(
        fence,
        engine,
        cfg.checkpoint,
        names=engine.parameter_names(),
        config=cfg.model_dump(mode="json"),
        data_fingerprint=corpora.fingerprint,
        versions=package_versions(),
    )


def _begin(start: Start, state: TrainState, cause: Rollback | None) -> None:
    """Leave what the run is made of in its folder, if there is room for a checkpoint."""
    start.store.prune(state.best.step if state.best else None)  # checkpoint.keep may have been lowered to make room
    start.store.check_room(start.model.num_parameters())
    open_folder(
        start.cfg,
        start.fence,
        state.step,
        again=cause is not None,
        device=describe_device(start.engine.device),
        engine=start.engine.name,
        world=start.engine.world,
        dp_shard_size=start.engine.dp_shard_size,
        data_fingerprint=start.corpora.fingerprint,
    )


def _tell_the_rest(start: Start, plan: Plan, state: TrainState) -> None:
    """Let W&B know of the end that a start had not told which ended between its last checkpoint and the run's mark.

    Offline it has the whole history so; online, where nobody can go back to rows that it lacks, it has the end alone.
    """
    if not is_done(start.cfg.run.dir) and (view := _open_wandb(start, plan, state)):
        view.close(failed=False)


def _open_wandb(start: Start, plan: Plan, state: TrainState) -> Beside | None:
    def is_urgent() -> bool:
        """Whether a scheduler is about to end the processes, not the user at the keyboard."""
        return start.deadline.over or start.stop.received not in (None, signal.SIGINT)

    facts = {"parameters": start.model.num_parameters(), "tokens": plan.tokens_at(plan.total_steps)}
    return wandb_beside(start.cfg, start.cfg.run.dir, state.step, is_urgent, **facts)


def _open_tracker(start: Start, plan: Plan, state: TrainState) -> Tracker:
    cfg = start.cfg
    if not start.engine.is_first:
        return Tracker()
    kept = (
        JsonlSink(cfg.run.dir),
        _open_wandb(start, plan, state),
        TensorboardSink(cfg.run.dir, state.step) if cfg.tensorboard else None,
    )
    fenced = [Fenced(sink, start.fence.holds) for sink in kept if sink is not None]
    return Tracker(*fenced, Console(plan.total_steps, state.step, first_time_s=state.time_s))


def _open_loader(cfg: Config, corpora: Corpora, plan: Plan, engine: Engine, state: TrainState) -> StepLoader:
    return StepLoader(
        corpora.train,
        sampler=corpora.sampler(cfg),
        context_length=cfg.model.context_length,
        sequences_per_step=plan.sequences_per_step,
        micro_batch_sequences=plan.micro_batch_sequences,
        rank=engine.rank,
        world=engine.world,
        total_steps=plan.total_steps,
        first_step=state.step,
        position_shift=plan.position_shift,
        skipped=state.skipped_windows,
        pin=engine.device.type == "cuda",
    )

"""One run from its config: open the corpus, join the ranks, resume, train, leave a record."""

import signal
from contextlib import ExitStack, closing

import torch

from gptscale.checkpoint.find import newest_good
from gptscale.checkpoint.retention import Retention
from gptscale.checkpoint.store import Store
from gptscale.config.schema import Config
from gptscale.data.corpus import Corpus, check_corpus, open_corpus
from gptscale.data.loader import StepLoader, count_samples
from gptscale.data.tokenizer import Tokenizer, load_tokenizer
from gptscale.model.flops import flops_per_token
from gptscale.model.gpt import GPTModel
from gptscale.runtime import ranks
from gptscale.runtime.device import describe_device, peak_flops
from gptscale.runtime.distributed import start_engine
from gptscale.runtime.engine import Engine
from gptscale.runtime.launch import launched_world
from gptscale.runtime.preempt import StopRequest
from gptscale.tracking.console import Console
from gptscale.tracking.jsonl import JsonlSink
from gptscale.tracking.tensorboard import TensorboardSink
from gptscale.tracking.tracker import Tracker
from gptscale.tracking.wandb import open_wandb
from gptscale.training.folder import held, open_folder
from gptscale.training.health import Health, Rollback
from gptscale.training.look import Look
from gptscale.training.loop import Run, fit, record_rollback
from gptscale.training.meter import Meter
from gptscale.training.micro_batch import with_micro_batch
from gptscale.training.optimizer import build_optimizer
from gptscale.training.plan import Plan, make_plan
from gptscale.training.provenance import package_versions
from gptscale.training.resume import resume
from gptscale.training.save_cost import SaveCost
from gptscale.training.state import TrainState


def train(cfg: Config) -> bool:
    """Train, or go on with the run in run.dir; says whether the last step was reached.

    Under a launcher every process calls this. A stop signal ends it early, with a checkpoint; after
    Ctrl-C that is a KeyboardInterrupt.
    """
    with StopRequest() as stop:
        ranks.join()
        try:
            finished = _train_together(cfg, stop)
        except Exception as error:
            explained = ranks.explained(error)
            raise explained from (error.__cause__ if explained is error else error)
    if stop.received is signal.SIGINT and not finished:
        raise KeyboardInterrupt
    return finished


def _train_together(cfg: Config, stop: StopRequest) -> bool:
    corpus = ranks.agree(lambda: _open_corpus(cfg))
    cfg = with_micro_batch(cfg)
    samples = count_samples(len(corpus.train), cfg.model.context_length, cfg.stride)
    plan = make_plan(cfg, samples, launched_world())
    engine = start_engine(
        cfg.train.precision,
        plan.accumulation,
        micro_batch_sequences=plan.micro_batch_sequences,
        clip_norm=cfg.optim.clip_norm,
    )
    try:
        finished = _train(cfg, corpus, plan, engine, stop)
    finally:
        engine.close()
    ranks.leave()
    return finished


def _open_corpus(cfg: Config) -> Corpus:
    corpus = open_corpus(cfg.data.dir)
    check_corpus(corpus, cfg)
    return corpus


def _train(cfg: Config, corpus: Corpus, plan: Plan, engine: Engine, stop: StopRequest) -> bool:
    tokenizer = engine.agree(lambda: load_tokenizer(cfg.data.tokenizer))
    torch.set_float32_matmul_precision("high" if cfg.train.tf32 else "highest")
    model = GPTModel(cfg.model, cfg.run.seed).to(engine.device)
    model.recompute = cfg.train.activation_checkpointing
    engine.prepare(model, build_optimizer(model, cfg.optim, engine.device), cfg.train.compile)
    for line in _summary(cfg, plan, engine, model, corpus):
        engine.say(line)
    with ExitStack() as stack:
        stack.enter_context(held(cfg.run.dir, engine))
        store = stack.enter_context(closing(_open_store(cfg, engine, corpus)))
        cause: Rollback | None = None
        while True:
            try:
                return _live(cfg, corpus, plan, engine, stop, store, model, tokenizer, cause)
            except Rollback as spike:
                _leave_out(store, engine, cause := spike)


def _live(
    cfg: Config,
    corpus: Corpus,
    plan: Plan,
    engine: Engine,
    stop: StopRequest,
    store: Store,
    model: GPTModel,
    tokenizer: Tokenizer,
    cause: Rollback | None,
) -> bool:
    """Train from the newest checkpoint on; cause is the spike that sent the run back to it, if one did."""
    state, plan = resume(cfg, corpus.manifest.fingerprint, engine, plan)
    if state.step >= plan.total_steps:
        engine.say(f"{cfg.run.dir} is finished: step {state.step} of {plan.total_steps}; a longer train.* goes on")
        return True
    engine.agree(lambda: _begin(cfg, store, engine, corpus, model, state) if engine.is_first else None)
    peak = peak_flops(engine.device, engine.dtype)
    meter = Meter(engine, plan, flops_per_token(cfg.model), peak, cfg.optim.clip_norm)
    meter.restore(state.interval, state.time_s)
    with ExitStack() as stack:
        tracker = stack.enter_context(engine.agree(lambda: _open_tracker(cfg, plan, engine, model, state)))
        loader = stack.enter_context(_open_loader(cfg, corpus, plan, engine, state))
        look, health = Look(cfg, engine, model, corpus, tokenizer), Health(cfg.health, state)
        run = Run(cfg, plan, engine, loader, look, health, meter, store, SaveCost(), tracker, stop)
        if cause is not None:
            record_rollback(run, state, cause)
        finished = fit(run, state)
    if not finished:
        kept = " with a checkpoint" if state.step else ""
        engine.say(f"stopped at step {state.step}{kept}; the same command goes on from there")
    return finished


def _leave_out(store: Store, engine: Engine, spike: Rollback) -> None:
    """Write into the last checkpoint which samples are left out from now on. All ranks call this together."""
    found = newest_good(store.run_dir, engine, engine.say)
    assert found is not None, "the loop has looked for one"
    path, manifest = found
    skipped = sorted({*manifest.ledger["skipped_windows"], *spike.positions})
    store.amend(path, skipped_windows=skipped, rollbacks=manifest.ledger.get("rollbacks", 0) + 1)
    engine.say(f"{spike}: going back to {path} and leaving out {len(spike.positions)} samples")


def _open_store(cfg: Config, engine: Engine, corpus: Corpus) -> Store:
    keep = cfg.checkpoint
    return Store(
        cfg.run.dir,
        engine,
        Retention(keep.keep, keep.keep_every_steps, keep.keep_best),
        background=keep.background,
        config=cfg.model_dump(mode="json"),
        data_fingerprint=corpus.manifest.fingerprint,
        versions=package_versions(),
    )


def _begin(cfg: Config, store: Store, engine: Engine, corpus: Corpus, model: GPTModel, state: TrainState) -> None:
    """Leave what the run is made of in its folder, if there is room for a checkpoint."""
    store.check_room(model.num_parameters())
    open_folder(
        cfg,
        state.step,
        device=describe_device(engine.device),
        engine=engine.name,
        world=engine.world,
        data_fingerprint=corpus.manifest.fingerprint,
    )


def _open_tracker(cfg: Config, plan: Plan, engine: Engine, model: GPTModel, state: TrainState) -> Tracker:
    if not engine.is_first:
        return Tracker()
    facts = {"parameters": model.num_parameters(), "tokens": plan.tokens_at(plan.total_steps)}
    return Tracker(
        JsonlSink(cfg.run.dir),
        open_wandb(cfg, cfg.run.dir, state.step, **facts),
        TensorboardSink(cfg.run.dir, state.step) if cfg.tensorboard else None,
        Console(plan.total_steps, state.step, first_time_s=state.time_s),
    )


def _open_loader(cfg: Config, corpus: Corpus, plan: Plan, engine: Engine, state: TrainState) -> StepLoader:
    return StepLoader(
        corpus.train,
        context_length=cfg.model.context_length,
        stride=cfg.stride,
        seed=cfg.run.seed,
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


def _summary(cfg: Config, plan: Plan, engine: Engine, model: GPTModel, corpus: Corpus) -> list[str]:
    tokens = plan.tokens_at(plan.total_steps)
    return [
        f"model: {model.num_parameters():,} parameters, context {cfg.model.context_length}",
        f"data: {len(corpus.train):,} training and {len(corpus.val):,} validation tokens, "
        f"fingerprint {corpus.manifest.fingerprint[:12]}",
        f"run: {plan.total_steps:,} steps of {plan.tokens_per_step:,} tokens = {tokens:,} tokens, "
        f"{plan.epoch_at(plan.total_steps):.2f} epochs, into {cfg.run.dir}",
        f"device: {describe_device(engine.device)}, {engine.world} x {plan.accumulation} micro-batches of "
        f"{plan.micro_batch_sequences} sequences, {cfg.train.precision}, engine {engine.name}{_filling(plan)}",
    ]


def _filling(plan: Plan) -> str:
    """What it costs that the ranks do not divide the step."""
    if not plan.filler_sequences:
        return ""
    share = plan.filler_sequences / (plan.filler_sequences + plan.sequences_per_step)
    return f"; {plan.filler_sequences} of them are filling of weight zero, {share:.0%} of the work"

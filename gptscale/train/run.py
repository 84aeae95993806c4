"""One run from its config: open the corpus, join the ranks, resume, train, leave a record."""

from contextlib import ExitStack
from typing import Any

from gptscale.checkpoint.layout import CheckpointManifest
from gptscale.checkpoint.store import Store
from gptscale.config.load import dump_config
from gptscale.config.schema import Config
from gptscale.data.corpus import Corpus, check_corpus, open_corpus
from gptscale.data.loader import StepLoader, count_samples
from gptscale.data.tokenizer import load_tokenizer
from gptscale.errors import TrainingError
from gptscale.model.flops import flops_per_token
from gptscale.model.gpt import GPTModel
from gptscale.runtime import ranks
from gptscale.runtime.device import describe_device, peak_flops
from gptscale.runtime.distributed import start_engine
from gptscale.runtime.engine import Engine
from gptscale.runtime.launch import launched_world
from gptscale.runtime.preempt import StopRequest
from gptscale.tracking.console import Console
from gptscale.tracking.jsonl import JsonlSink, cut_back
from gptscale.tracking.tracker import Tracker
from gptscale.tracking.wandb import open_wandb
from gptscale.train.look import Look
from gptscale.train.loop import Run, fit
from gptscale.train.meter import Meter
from gptscale.train.optimizer import build_optimizer
from gptscale.train.plan import Plan, make_plan
from gptscale.train.provenance import write_provenance
from gptscale.train.state import TrainState

FIXED_BY_FIRST_START = (
    ("run", "seed"),
    ("data", "stride"),
    ("train", "tokens_per_step"),
    ("model", "context_length"),
)
"""What says which samples a step reads: with other values a resume would read some twice and others never."""


def train(cfg: Config) -> bool:
    """Train, or go on with the run in run.dir; says whether the last step was reached.

    Under a launcher every process calls this. A stop signal ends it early, with a checkpoint.
    """
    ranks.join()
    try:
        return _train_together(cfg)
    except Exception as error:
        explained = ranks.explained(error)
        raise explained from (error.__cause__ if explained is error else error)


def _train_together(cfg: Config) -> bool:
    corpus = ranks.agree(lambda: _open_corpus(cfg))
    samples = count_samples(len(corpus.train), cfg.model.context_length, cfg.stride)
    plan = make_plan(cfg, samples, launched_world())
    engine = start_engine(
        cfg.train.precision,
        plan.accumulation,
        micro_batch_sequences=plan.micro_batch_sequences,
        clip_norm=cfg.optim.clip_norm,
    )
    try:
        finished = _train(cfg, corpus, plan, engine)
    finally:
        engine.close()
    ranks.leave()
    return finished


def _open_corpus(cfg: Config) -> Corpus:
    corpus = open_corpus(cfg.data.dir)
    check_corpus(corpus, cfg)
    return corpus


def _train(cfg: Config, corpus: Corpus, plan: Plan, engine: Engine) -> bool:
    model = GPTModel(cfg.model, cfg.run.seed).to(engine.device)
    model.recompute = cfg.train.activation_checkpointing
    engine.prepare(model, build_optimizer(model, cfg.optim, engine.device), cfg.train.compile)
    store = Store(
        run_dir=cfg.run.dir,
        ranks=engine,
        keep=cfg.checkpoint.keep,
        config=cfg.model_dump(mode="json"),
        data_fingerprint=corpus.manifest.fingerprint,
        say=engine.say,
    )
    for line in _summary(cfg, plan, engine, model, corpus):
        engine.say(line)
    state = _resume(cfg, store, engine)
    if state.step >= plan.total_steps:
        engine.say(f"{cfg.run.dir} is finished: step {state.step} of {plan.total_steps}; a longer train.* goes on")
        return True
    engine.agree(lambda: _open_run_dir(cfg, store, engine, corpus, state) if engine.is_first else None)

    meter = Meter(engine, plan, flops_per_token(cfg.model), peak_flops(engine.device, engine.dtype))
    meter.restore(state.interval)
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        tracker = stack.enter_context(_open_tracker(cfg, plan, engine, state))
        loader = stack.enter_context(_open_loader(cfg, corpus, plan, engine, state))
        look = Look(cfg, engine, model, corpus, load_tokenizer(cfg.data.tokenizer))
        finished = fit(Run(cfg, plan, engine, loader, look, meter, store, tracker, stop), state)
    if not finished:
        engine.say(f"stopped at step {state.step} with a checkpoint; the same command goes on from there")
    return finished


def _resume(cfg: Config, store: Store, engine: Engine) -> TrainState:
    """Where the newest good checkpoint left off, its tensors put in place; the start if there is none."""
    found = store.newest()
    if found is None:
        return TrainState()
    path, manifest = found
    _check_same_run(cfg, manifest)
    store.load(path, manifest, engine.wanted_fragments(), engine.parameter_names())
    engine.loaded()
    engine.load_scaler_state(manifest.ledger["loss_scaler"])
    engine.say(f"going on from {path}")
    return TrainState.from_ledger(manifest.ledger)


def _check_same_run(cfg: Config, manifest: CheckpointManifest) -> None:
    now: dict[str, Any] = cfg.model_dump(mode="json")
    for section, field in FIXED_BY_FIRST_START:
        before = manifest.config[section][field]
        if before != now[section][field]:
            raise TrainingError(
                f"{cfg.run.dir} was started with {section}.{field}={before}, not {now[section][field]}; "
                f"set it back, or start a new run in another run.dir"
            )


def _open_run_dir(cfg: Config, store: Store, engine: Engine, corpus: Corpus, state: TrainState) -> None:
    """Leave what the run is made of in its folder; one history only, so the log ends where we start."""
    try:
        cfg.run.dir.mkdir(parents=True, exist_ok=True)
        (cfg.run.dir / "config.yaml").write_text(dump_config(cfg), encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"run.dir={cfg.run.dir} cannot be written: {error.strerror}; choose another") from None
    store.check_room(sum(p.numel() for p in engine.bare_model.parameters()))
    cut_back(cfg.run.dir, state.step if state.step else None)
    write_provenance(
        cfg.run.dir,
        from_step=state.step,
        device=describe_device(engine.device),
        engine=engine.name,
        world=engine.world,
        data_fingerprint=corpus.manifest.fingerprint,
    )


def _open_tracker(cfg: Config, plan: Plan, engine: Engine, state: TrainState) -> Tracker:
    if not engine.is_first:
        return Tracker()
    return Tracker(JsonlSink(cfg.run.dir), open_wandb(cfg, cfg.run.dir), Console(plan.total_steps, state.step))


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
        pin=engine.device.type == "cuda",
    )


def _summary(cfg: Config, plan: Plan, engine: Engine, model: GPTModel, corpus: Corpus) -> list[str]:
    tokens = plan.total_steps * plan.tokens_per_step
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

"""Going on from a checkpoint: only as the same run."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from gptscale.checkpoint.find import load_fragments, newest_good
from gptscale.checkpoint.layout import CheckpointManifest, list_checkpoints, read_manifest, step_dir
from gptscale.config.schema import NO_FUNCTION, Config
from gptscale.errors import CheckpointError, TrainingError
from gptscale.runtime.engine import Engine
from gptscale.training.folder import DONE, is_done
from gptscale.training.initial import load_initial_weights
from gptscale.training.plan import Plan, Segment, make_plan
from gptscale.training.schedule import lr_at
from gptscale.training.state import Best, TrainState

FIXED = (
    ("run", "seed"),
    ("data", "tokenizer"),
    ("data", "stride"),
    ("data", "shuffle_block_samples"),
    ("train", "tokens_per_step"),
    ("optim", "name"),
)
"""With other values a resume would read some samples twice and others never, or find no state."""


def resume(cfg: Config, data_fingerprint: str, engine: Engine, plan: Plan) -> tuple[TrainState, Plan]:
    """Where the newest good checkpoint left off, its tensors put in place, and the plan from there on.

    That is the start if there is no checkpoint. All ranks call this together. Raises TrainingError if the run folder
    holds another run than the config's, and CheckpointError if no checkpoint can be used.
    """
    found = newest_good(cfg.run.dir, engine, engine.say, strict=cfg.resume.strict)
    if found is None:
        load_initial_weights(cfg, engine)
        return TrainState(segments=[plan.segment]), plan
    path, manifest = found
    _check_same(cfg, data_fingerprint, path, manifest)
    load_fragments(path, manifest, engine, engine.wanted_fragments(), engine.parameter_names())
    engine.loaded()
    engine.load_scaler_state(manifest.ledger["loss_scaler"])
    engine.say(f"going on from {path}")
    if changes := _changes(cfg, manifest):
        engine.say(f"changed since then: {', '.join(changes)}")
    state = TrainState.from_ledger(manifest.ledger)
    if state.segments[-1].tokens_per_step != plan.tokens_per_step:
        state.segments.append(Segment(state.step, state.samples, plan.tokens_per_step))
        engine.say(f"a new segment of {plan.tokens_per_step:,} tokens per step begins at sample {state.samples:,}")
    plan = make_plan(cfg, plan.samples_per_epoch, plan.world, state.segments[-1])
    _tell_jump(cfg, manifest, engine, plan)
    _forget_best(cfg, manifest, engine, state)
    return state, plan


def check_goes_on(cfg: Config, data_fingerprint: str) -> None:
    """Raise what `resume` will if the run folder holds another run, before this start takes the folder over.

    Also if that is a finished run without its checkpoints. Reads the newest manifest alone; where that is damaged,
    `resume` looks further.
    """
    try:
        checkpoints = list_checkpoints(cfg.run.dir)
        manifest = read_manifest(checkpoints[0]) if checkpoints else None
    except CheckpointError:
        return
    if manifest is not None:
        _check_same(cfg, data_fingerprint, checkpoints[0], manifest)
    elif is_done(cfg.run.dir):  # a start from nothing would cut all of its record away
        raise TrainingError(
            f"{cfg.run.dir} holds the record of a finished run and none of its checkpoints; put them back, choose "
            f"another run.dir, or remove {cfg.run.dir / DONE} to begin anew and lose that record"
        )


def _check_same(cfg: Config, fingerprint: str, path: Path, manifest: CheckpointManifest) -> None:
    """Raise for weights that nobody has trained, such as `gptscale import` writes, for another run and other data."""
    if "samples" not in manifest.ledger:
        raise CheckpointError(
            f"{path} holds weights and no training to go on with; move it away and start from it with model.init_from"
        )
    _check_same_run(cfg, manifest)
    if manifest.data_fingerprint != fingerprint:
        where = f"data.dir={cfg.data.dir}" if cfg.data.dir else "data.mixture"
        raise CheckpointError(
            f"{path} was trained on data {manifest.data_fingerprint[:12]}, but {where} holds "
            f"{fingerprint[:12]}; point data.dir at the first corpus, or start a new run in another run.dir"
        )


def _check_same_run(cfg: Config, manifest: CheckpointManifest) -> None:
    """Raise TrainingError unless a checkpoint's run and the config's are the same function of their step."""
    now: dict[str, Any] = cfg.model_dump(mode="json")
    model = [("model", field) for field in now["model"] if field not in NO_FUNCTION]
    for section, field in (*FIXED, *model):
        default = type(getattr(cfg, section)).model_fields[field].default  # of a field that is newer than the run
        before, wanted = manifest.config[section].get(field, default), now[section][field]
        if field == "stride" and (before or wanted):  # null is the context's length
            before, wanted = before or manifest.config["model"]["context_length"], cfg.stride
        if before != wanted and field not in cfg.resume.allow:
            allow = f", allow it with resume.allow=[{field}]" if field == "tokens_per_step" else ""
            raise TrainingError(
                f"{cfg.run.dir} was started with {section}.{field}={before}, not {wanted}; "
                f"set it back{allow}, or start a new run in another run.dir"
            )


def _changes(cfg: Config, manifest: CheckpointManifest) -> list[str]:
    """The settings that decide what is computed and what stays, where they are others than the checkpoint's."""
    now = cfg.model_dump(mode="json")
    return [
        f"{section}.{field} {before} -> {now[section][field]}"
        for section in ("model", "train", "optim", "eval", "checkpoint")
        for field, before in manifest.config[section].items()
        if field in now[section] and before != now[section][field]
    ]


def _forget_best(cfg: Config, manifest: CheckpointManifest, engine: Engine, state: TrainState) -> None:
    """Look among the checkpoints for the best anew if that is gone, or if its loss was over other windows."""
    if state.best is None or not cfg.checkpoint.keep_best:
        return
    other = manifest.config["eval"].get("sequences") != cfg.eval.sequences
    gone = not step_dir(cfg.run.dir, state.best.step).is_dir()
    if engine.gather(other or gone)[0]:
        best = engine.gather(engine.agree(lambda: _best_there(cfg) if engine.is_first else None))[0]
        why = "its loss is over other windows than eval.sequences asks for now" if other else "it is gone"
        now = f"; step {best.step} does" if best else ""
        engine.say(f"step {state.best.step} no longer counts as the best: {why}{now}")
        state.best = best


def _best_there(cfg: Config) -> Best | None:
    """The checkpoint in the run folder with the lowest loss at its very step, over the config's windows."""
    found = []
    for path in list_checkpoints(cfg.run.dir):
        with suppress(CheckpointError):
            manifest = read_manifest(path)
            same = manifest.config["eval"].get("sequences") == cfg.eval.sequences
            loss = manifest.ledger.get("val_loss")
            if same and loss is not None:
                found.append(Best(manifest.step, loss))
    return min(found, key=lambda best: best.val_loss, default=None)


def _tell_jump(cfg: Config, manifest: CheckpointManifest, engine: Engine, plan: Plan) -> None:
    """Say so if a changed length or schedule lets the learning rate jump."""
    if not manifest.step or manifest.step >= plan.total_steps:
        return
    before, now = manifest.ledger["lr"], lr_at(manifest.step - 1, cfg.optim, plan.total_steps)
    if abs(now - before) > 0.01 * before:
        horizon = manifest.config["optim"].get("decay_steps") or manifest.ledger["total_steps"]
        engine.say(
            f"WARNING: the learning rate jumps from {before:.3g} to {now:.3g}, since the run's length or optim.* was "
            f"changed; optim.decay_steps={horizon} keeps the schedule that it had, which ends at optim.lr_floor"
        )

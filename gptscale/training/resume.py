"""Going on from a checkpoint: only as the same run."""

from typing import Any

from gptscale.checkpoint.layout import CheckpointManifest
from gptscale.checkpoint.store import Store
from gptscale.config.schema import Config
from gptscale.errors import TrainingError
from gptscale.runtime.engine import Engine
from gptscale.training.plan import Plan
from gptscale.training.schedule import lr_at
from gptscale.training.state import TrainState

FIXED = (
    ("run", "seed"),
    ("data", "stride"),
    ("data", "shuffle_block_samples"),
    ("train", "tokens_per_step"),
    ("optim", "name"),
)
"""With other values a resume would read some samples twice and others never, or find no state."""

FREE_OF_MODEL = {"preset", "init", "drop_rate"}
"""All else in the model section says which function the weights belong to."""


def resume(cfg: Config, store: Store, engine: Engine, plan: Plan) -> TrainState:
    """Where the newest good checkpoint left off, its tensors put in place; the start if there is none.

    All ranks call this together. Raises TrainingError if the run folder holds another run than the config's.
    """
    found = store.newest()
    if found is None:
        return TrainState()
    path, manifest = found
    check_same_run(cfg, manifest)
    store.load(path, manifest, engine.wanted_fragments(), engine.parameter_names())
    engine.loaded()
    engine.load_scaler_state(manifest.ledger["loss_scaler"])
    engine.say(f"going on from {path}")
    _tell_jump(cfg, manifest, engine, plan)
    return TrainState.from_ledger(manifest.ledger)


def check_same_run(cfg: Config, manifest: CheckpointManifest) -> None:
    """Raise TrainingError unless a checkpoint's run and the config's are the same function of their step."""
    now: dict[str, Any] = cfg.model_dump(mode="json")
    model = [("model", field) for field in now["model"] if field not in FREE_OF_MODEL]
    for section, field in (*FIXED, *model):
        before, wanted = manifest.config[section].get(field), now[section][field]
        if before != wanted:
            raise TrainingError(
                f"{cfg.run.dir} was started with {section}.{field}={before}, not {wanted}; "
                "set it back, or start a new run in another run.dir"
            )


def _tell_jump(cfg: Config, manifest: CheckpointManifest, engine: Engine, plan: Plan) -> None:
    """Say so if a changed length or schedule lets the learning rate jump."""
    if not manifest.step or manifest.step >= plan.total_steps:
        return
    before, now = manifest.ledger["lr"], lr_at(manifest.step - 1, cfg.optim, plan.total_steps)
    if abs(now - before) > 0.01 * before:
        engine.say(
            f"WARNING: the learning rate jumps from {before:.3g} to {now:.3g}, since the run's length or optim.* was "
            f"changed; optim.decay_steps={manifest.ledger['total_steps']} keeps a longer run at optim.lr_floor"
        )

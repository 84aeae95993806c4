"""From another program's saved training to a checkpoint of ours, in a run folder that `train` goes on with."""

from contextlib import closing
from pathlib import Path

import torch

from gptscale.checkpoint.layout import list_checkpoints
from gptscale.checkpoint.store import Store
from gptscale.config.schema import Config
from gptscale.data.corpora import check_corpora, open_corpora
from gptscale.errors import TrainingError
from gptscale.runtime import ranks
from gptscale.runtime.fragments import Fragment
from gptscale.runtime.saved_state import SavedState
from gptscale.tracking.provenance import package_versions
from gptscale.training.folder import take_alone
from gptscale.training.plan import make_plan
from gptscale.training.schedule import lr_at
from gptscale.training.state import TrainState
from gptscale.weights.saved_state import read_saved_state


class _Alone:
    """One process, as the store knows ranks; the state is nobody's engine yet."""

    name = "imported"
    rank = 0
    world = 1
    gather = staticmethod(ranks.gather)
    agree = staticmethod(ranks.agree)


def import_state(cfg: Config, folder: Path) -> Path:
    """Make the checkpoint of cfg's run that has the weights and moments of a folder, and give its path.

    Its step is AdamW's count of updates, and it goes on at that step's place in our own sample order. Raises
    TrainingError for a run that has begun, and CheckpointError for a folder that does not fit.
    """
    if cfg.optim.name != "adamw":
        raise TrainingError(
            f"optim.name={cfg.optim.name}, but only states of AdamW can be imported; set optim.name=adamw"
        )
    if list_checkpoints(cfg.run.dir):
        raise TrainingError(f"run.dir={cfg.run.dir} has checkpoints of its own; import into a new run.dir")
    corpora = check_corpora(open_corpora(cfg), cfg)
    state = read_saved_state(folder, cfg.model)
    store = Store(
        take_alone(cfg.run.dir),
        _Alone(),
        cfg.checkpoint.model_copy(update={"background": False}),
        config=cfg.model_dump(mode="json"),
        data_fingerprint=corpora.fingerprint,
        versions=package_versions(),
    )
    with closing(store):
        store.save(state.step, _ledger(cfg, corpora.sampler(cfg).samples, state.step), _fragments(state))
        saved = store.finish()
    assert saved is not None
    return saved.path


def _ledger(cfg: Config, samples: int, step: int) -> dict[str, object]:
    """As a run of ours would have it after so many steps, which no micro-batch decides."""
    plan = make_plan(cfg.with_changes(train={"micro_batch_sequences": 1}), samples, world=1)
    return TrainState(
        lr=lr_at(step - 1, cfg.optim, plan.total_steps),
        total_steps=plan.total_steps,
        step=step,
        samples=plan.samples_at(step),
        segments=[plan.segment],
    ).ledger()


def _fragments(state: SavedState) -> list[Fragment]:
    count = torch.tensor(float(state.step))
    return [
        Fragment(
            name=name,
            shape=tuple(weight.shape),
            start=0,
            tensors={kind: held[name].reshape(-1) for kind, held in state.tensors.items()},
            scalars={"step": count},
        )
        for name, weight in state.tensors["weight"].items()
    ]

"""One rank of a test: instead of training, loads checkpoints one after the other and takes ten steps from each.

SOURCES is a list of checkpoints in JSON. For each of them crossing.json in the folder that WATCH names holds the hash
of the whole state after loading, and the loss of each step.
"""

import json
import os
from pathlib import Path
from typing import Any

from gptscale.checkpoint.find import load_fragments
from gptscale.checkpoint.layout import read_manifest
from gptscale.cli.main import main
from gptscale.data.corpora import open_corpora
from gptscale.training import loop, run
from gptscale.training.schedule import lr_at
from gptscale.training.state import TrainState
from gptscale.training.step import train_step
from tests.dist.worker import state_hash, whole_state

STEPS = 10


def load_and_go_on(of: loop.Run, path: Path) -> dict[str, Any]:
    """What this engine makes of a checkpoint."""
    manifest = read_manifest(path)
    engine, cfg, plan = of.engine, of.cfg, of.plan
    load_fragments(path, manifest, engine, engine.wanted_fragments(), engine.parameter_names())
    engine.loaded()
    found: dict[str, Any] = {"state": state_hash(whole_state(engine)), "losses": []}
    state = TrainState.from_ledger(manifest.ledger)
    with run._open_loader(cfg, open_corpora(cfg), plan, engine, state) as loader:
        for step in range(state.step, state.step + STEPS):
            batches = loader.next_step()
            lr = lr_at(step, cfg.optim, plan.total_steps)
            clip = cfg.optim.clip_norm
            result = train_step(engine, plan, batches, seed=cfg.run.seed, step=step, lr=lr, clip_norm=clip)
            found["losses"].append(float(engine.sum_over_ranks(result.loss)))
    return found


def cross(of: loop.Run, state: TrainState) -> bool:
    """In the place of `fit`."""
    found = {path: load_and_go_on(of, Path(path)) for path in json.loads(os.environ["SOURCES"])}
    if of.engine.is_first:
        (Path(os.environ["WATCH"]) / "crossing.json").write_text(json.dumps(found))
    return True


if __name__ == "__main__":
    run.fit = cross
    main()

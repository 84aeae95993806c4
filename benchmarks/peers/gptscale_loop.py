"""gptscale's whole loop: its loader, its record, W&B offline; evaluation only before the first step."""

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

from side_by_side import Contest, prose

from gptscale import prepare
from gptscale import train as train_run
from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.data.loader import StepLoader


def train(contest: Contest) -> None:
    """A turn ends where the loop asks for the next step, so that all of a step is in it."""
    next_step = StepLoader.next_step
    asked = 0

    def taking_turns(loader: StepLoader) -> Any:
        nonlocal asked
        asked += 1
        if asked > 1:
            contest.step_done(0.0)
        return next_step(loader)

    StepLoader.next_step = taking_turns  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        cfg = config(contest, Path(folder))
        prepare(cfg)
        train_run(cfg)


def config(contest: Contest, folder: Path) -> Config:
    """A run that never ends."""
    setup = contest.setup
    inputs, _ = next(contest.batches())
    (folder / "prose.txt").write_text(prose())
    return parse_config(
        {
            "run": {"dir": str(folder / "run")},
            "model": setup.model,
            "data": {
                "dir": str(folder / "corpus"),
                "source": {"path": str(folder / "prose.txt")},
                "tokenizer": "gpt2",
                "split": "tail",
            },
            "train": {
                "steps": 10**6,
                "tokens_per_step": inputs.numel(),
                "micro_batch_sequences": len(inputs),
                "precision": setup.precision,
                "compile": setup.compile,
            },
            "optim": {
                "lr_peak": setup.lr,
                "lr_floor": setup.lr,
                "weight_decay": setup.weight_decay,
                "beta1": setup.betas[0],
                "beta2": setup.betas[1],
            },
            "eval": {"every_steps": None, "sequences": 1, "train_sequences": None},
            "sample": {"prompts": []},
            "checkpoint": {"every_steps": None},
            "wandb": {"mode": "offline"},
        }
    )

"""gptscale's whole loop: its loader, its record, W&B offline; evaluation only before the first step.

It reads token files, so that neither `datasets` nor gigatoken is needed, and W&B takes part where it is installed.
"""

import contextlib
import io
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import Contest, prose_ids

from gptscale import train as train_run
from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.data.adopt import adopt
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
    beside = Path(contest.setup.batches).parent  # which is removed after a contest that broke off, too
    with tempfile.TemporaryDirectory(dir=beside) as folder, contextlib.redirect_stdout(io.StringIO()):
        tokens = prose_ids().astype(np.uint16)
        for split, part in (("train", tokens[:-20_000]), ("val", tokens[-20_000:])):
            part.tofile(Path(folder, f"{split}.bin"))
        adopt(Path(folder, "corpus"), [f"{folder}/train.bin"], [f"{folder}/val.bin"])
        train_run(config(contest, Path(folder)))


def config(contest: Contest, folder: Path) -> Config:
    """A run that never ends."""
    setup = contest.setup
    inputs, _ = next(contest.batches())
    if find_spec("wandb") is None:
        print("without W&B, which is not installed", file=sys.stderr)
    return parse_config(
        {
            "run": {"dir": str(folder / "run")},
            "model": setup.model,
            "data": {"dir": str(folder / "corpus"), "tokenizer": "gpt2"},
            "train": {
                "steps": 10**6,
                "tokens_per_step": inputs.numel(),
                "micro_batch_sequences": len(inputs),
                "precision": setup.precision,
                "compile": setup.compile,
                "log_every_steps": setup.log_every_steps,
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
            "wandb": {"mode": "offline" if find_spec("wandb") else "disabled"},
        }
    )

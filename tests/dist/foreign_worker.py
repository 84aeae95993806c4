"""One rank of a training that saves in the ways of Accelerate and of DeepSpeed after its tenth step, and goes on.

FOREIGN names the folder: accelerate/ and deepspeed/ (under ZeRO) are theirs, state.pt is the state put together by us.
"""

import os
from pathlib import Path
from typing import Any

import torch

from gptscale.cli.main import main
from gptscale.runtime.engine import Engine
from gptscale.training import loop
from tests.dist.worker import whole_state

SAVED_AFTER = 10

train_step = loop.train_step


def saving_step(engine: Engine, *args: Any, step: int, **kwargs: Any) -> Any:
    result = train_step(engine, *args, step=step, **kwargs)
    if step + 1 == SAVED_AFTER:
        folder = Path(os.environ["FOREIGN"])
        engine._accelerator.save_state(str(folder / "accelerate"), safe_serialization="BIN" not in os.environ)
        if engine.name.startswith("zero"):
            engine.model.save_checkpoint(str(folder / "deepspeed"))
        state = whole_state(engine)
        if engine.rank == 0:
            torch.save(state, folder / "state.pt")
    return result


if __name__ == "__main__":
    loop.train_step = saving_step
    main()

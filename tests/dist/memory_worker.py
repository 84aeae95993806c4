"""One rank of a test: instead of training, one step, then saves and a load with an eye on the memory they take.

WATCH names a folder for memory-RANK.json: the peak of this rank's memory during each, beyond what it had before.
"""

import ctypes
import gc
import json
import os
from collections.abc import Callable
from pathlib import Path

from gptscale.checkpoint.find import load_fragments, newest_good
from gptscale.cli.main import main
from gptscale.training import loop, run
from gptscale.training.state import TrainState
from gptscale.training.step import train_step


def status(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def peak_bytes(work: Callable[[], object]) -> int:
    """How much more memory than before this process had while it worked."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


def measure(of: loop.Run, state: TrainState) -> bool:
    """In the place of `fit`."""
    engine, cfg = of.engine, of.cfg
    train_step(engine, of.plan, of.loader.next_step(), seed=1, step=0, lr=1e-3, clip_norm=None)
    ledger = state.ledger()

    def save(step: int) -> None:
        of.store.save(step, ledger, engine.owned_fragments())
        of.store.finish()

    def load() -> None:
        path, manifest = newest_good(cfg.run.dir, engine, engine.say)  # type: ignore[misc]
        load_fragments(path, manifest, engine, engine.wanted_fragments(), engine.parameter_names())
        engine.loaded()

    found = {
        "share": sum(t.nbytes for f in engine.owned_fragments() for t in f.tensors.values()),
        "first save": peak_bytes(lambda: save(1)),
        "second save": peak_bytes(lambda: save(2)),
        "load": peak_bytes(load),
    }
    (Path(os.environ["WATCH"]) / f"memory-{engine.rank}.json").write_text(json.dumps(found))
    return True


if __name__ == "__main__":
    run.fit = measure
    main()

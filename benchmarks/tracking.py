"""What watching a run costs: tokens/s with all of tracking on, and with none, in turn.

    python benchmarks/tracking.py [--config configs/demo.yaml] [section.key=value ...]

Trains the config in pairs: once with log.jsonl, W&B offline, TensorBoard and the console, once
with no sink at all; everything else is the same. Speed is taken from the starts of the steps after the first tenth, so
logging between steps counts, and evaluations and checkpoints do not. Prints each pair and the median of their ratios;
exits with 1 if it is below 0.98.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from mistakes import at_least, positive, told

from gptscale import load_config, prepare
from gptscale.config.schema import Config
from gptscale.tracking.tracker import Tracker
from gptscale.training import loop, run

CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"
LEAST = 0.98


def main() -> int:
    """Measure and compare; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--pairs", type=positive, default=5)
    parser.add_argument("--steps", type=at_least(2), default=100)
    arguments = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        fixed = [
            f"train.steps={arguments.steps}",
            "train.log_every_steps=10",
            "tensorboard=true",
            "optim.warmup_steps=1",
        ]
        quiet = ["eval.every_steps=null", "eval.sequences=1", "eval.train_sequences=null", "sample.prompts=[]"]
        cfg = load_config(arguments.config, [*fixed, *quiet, "wandb.mode=offline", *arguments.overrides])
        prepare(cfg)
        print("pair  tokens/s with all  tokens/s with none  ratio")
        for pair in range(arguments.pairs):
            order = (True, False) if pair % 2 else (False, True)  # neither is always the warmer one
            rates = {watched: rate(cfg, Path(folder) / f"{pair}-{watched}", watched) for watched in order}
            ratios.append(rates[True] / rates[False])
            print(f"{pair + 1:4}  {rates[True]:17,.0f}  {rates[False]:18,.0f}  {ratios[-1]:5.3f}", flush=True)
    ratio = statistics.median(ratios)
    print(f"median {ratio:.3f}; at least {LEAST} is asked")
    return 0 if ratio >= LEAST else 1


def rate(cfg: Config, folder: Path, watched: bool) -> float:
    """Train in a new folder and give tokens per second."""
    cfg = cfg.model_copy(update={"run": cfg.run.model_copy(update={"dir": folder})})
    starts: list[float] = []
    train_step, open_tracker = loop.train_step, run._open_tracker

    def noting(*args: Any, **kwargs: Any) -> Any:
        starts.append(time.perf_counter())
        return train_step(*args, **kwargs)

    loop.train_step = noting
    if not watched:
        run._open_tracker = lambda *args: Tracker()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            finished = run.train(cfg)
    finally:
        loop.train_step, run._open_tracker = train_step, open_tracker
    if not finished:
        raise SystemExit("stopped by a signal")
    warm = starts[len(starts) // 10 :]
    return (len(warm) - 1) * cfg.train.tokens_per_step / (warm[-1] - warm[0])


if __name__ == "__main__":
    raise SystemExit(told(main))

"""From the start of a process to its first step: a resumed run beside a fresh one. Interleaved rounds, medians.

    python benchmarks/resume_time.py [--rounds 5]

A 51 M parameter model of bytes on one process; the checkpoint to resume from has 612 MB. The fresh run does not
evaluate before its first step, so that both do the same but for loading.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from mistakes import positive, told

from gptscale.config.load import dump_config, parse_config
from gptscale.config.schema import Config
from gptscale.data.prepare import prepare

RUN = """
import sys
from gptscale.cli.main import main
from gptscale.training import loop

loop._look = lambda run, state: None
sys.argv = ["gptscale", "train", *sys.argv[1:]]
main()
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cfg = config(folder)
        prepare(cfg, say=lambda line: None)
        path = folder / "config.yaml"
        path.write_text(dump_config(cfg))
        seconds_to_step(path, folder / "resumed", 1, 1, wait=True)  # leaves the checkpoint of step 1
        fresh, resumed = [], []
        for number in range(rounds + 1):
            fresh.append(seconds_to_step(path, folder / f"fresh-{number}", 1, 1))
            resumed.append(seconds_to_step(path, folder / "resumed", 2, 2))
    fresh, resumed = fresh[1:], resumed[1:]  # the first round warms the disk's cache up
    ratio = median(r / f for r, f in zip(resumed, fresh, strict=True))
    print(f"fresh    {median(fresh):.2f} s ({min(fresh):.2f} to {max(fresh):.2f})")
    print(f"resumed  {median(resumed):.2f} s ({min(resumed):.2f} to {max(resumed):.2f})")
    print(f"resumed against fresh, median of {rounds} rounds: {ratio:.2f}")


def seconds_to_step(path: Path, run_dir: Path, steps: int, step: int, *, wait: bool = False) -> float:
    """Seconds until a run reports a step; it is then killed, so that it leaves no checkpoint, unless it may end."""
    settings = [f"run.dir={run_dir}", f"train.steps={steps}"]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", RUN, str(path), *settings], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = None
    for line in process.stdout:
        if found is None and line.startswith(f"step {step}/"):
            found = time.perf_counter() - start
            if not wait:
                process.kill()
    process.wait()
    if found is None:
        raise SystemExit(f"{run_dir} never came to step {step}")
    return found


def config(folder: Path) -> Config:
    """A large model on little text, one sequence a step."""
    (folder / "text.txt").write_text("All work and no play makes a dull corpus. " * 2000)
    values = {
        "run": {"dir": str(folder / "run")},
        "model": {"vocab_size": 50257, "emb_dim": 512, "n_heads": 8, "n_layers": 8, "context_length": 64},
        "data": {
            "dir": str(folder / "corpus"),
            "source": {"path": str(folder / "text.txt")},
            "tokenizer": "bytes",
            "split": "tail",
        },
        "train": {
            "steps": 1,
            "tokens_per_step": 64,
            "micro_batch_sequences": 1,
            "precision": "fp32",
            "log_every_steps": 1,
        },
        "eval": {"every_steps": None, "sequences": 1, "train_sequences": None},
        "sample": {"prompts": []},
        "checkpoint": {"every_steps": None, "keep": None},
    }
    return parse_config(values)


if __name__ == "__main__":
    raise SystemExit(told(main))

"""The same validation loss on Shakespeare: configs/shakespeare.yaml beside nanoGPT's CPU recipe, by the clock.

    python benchmarks/shakespeare.py tinyshakespeare.txt --nanogpt ~/nanoGPT [--rounds 3]

nanoGPT's recipe is the one of its README for a CPU: train_shakespeare_char with 2,000 iterations. Both run as a user
runs them, in turn, and time begins with the process that trains, so imports count. The text is ASCII, so that our
bytes are its characters, and both validate on its last tenth. Prints when we first are at or below nanoGPT's last loss.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mistakes import file, folder_with, positive, told

CONFIG = Path(__file__).parent.parent / "configs" / "shakespeare.yaml"
RECIPE = {
    "device": "cpu",
    "compile": False,
    "eval_iters": 20,
    "log_interval": 1,
    "block_size": 64,
    "batch_size": 12,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "max_iters": 2000,
    "lr_decay_iters": 2000,
    "dropout": 0.0,
}
OURS = re.compile(r"step (\d+)/\d+  validation  loss ([\d.]+)")
THEIRS = re.compile(r"step (\d+): train loss [\d.]+, val loss ([\d.]+)")
MOST = 0.5


@dataclass(frozen=True)
class Point:
    """A validation, seconds after the start."""

    seconds: float
    step: int
    loss: float


def main() -> int:
    """Train both and compare; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=file)
    parser.add_argument("--nanogpt", type=folder_with("train.py"), required=True, help="path of nanoGPT's repository")
    parser.add_argument("--rounds", type=positive, default=3)
    asked = parser.parse_args()
    if not asked.text.read_bytes().isascii():
        parser.error("the text has to be ASCII, so that our bytes are its characters, as nanoGPT counts them")
    shares = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy = prepared_nanogpt(asked.nanogpt, asked.text, folder / "nanoGPT")
        settings = [str(CONFIG), f"data.source.path={asked.text.resolve()}", f"data.dir={folder / 'corpus'}"]
        gptscale = [sys.executable, "-m", "gptscale"]
        subprocess.run([*gptscale, "prepare", *settings], check=True, stdout=subprocess.DEVNULL)
        recipe = [f"--{key}={value}" for key, value in RECIPE.items()]
        nanogpt = [sys.executable, "-u", "train.py", "config/train_shakespeare_char.py", *recipe]
        for number in range(asked.rounds):
            theirs = watched(nanogpt, THEIRS, copy)
            show("nanoGPT", theirs)
            ours = watched([*gptscale, "train", *settings, f"run.dir={folder / f'run-{number}'}"], OURS)
            show("gptscale", ours)
            reached = next((point for point in ours if point.loss <= theirs[-1].loss), None)
            shares.append(reached.seconds / theirs[-1].seconds if reached else float("inf"))
            print(f"round {number + 1}: nanoGPT's last loss after {shares[-1]:.2f} of its time", flush=True)
    share = statistics.median(shares)
    print(f"median {share:.2f} ({min(shares):.2f} to {max(shares):.2f}); at most {MOST} is asked")
    return 0 if share <= MOST else 1


def prepared_nanogpt(repository: str, text: Path, copy: Path) -> Path:
    """A copy of nanoGPT with its own preparation of the text, which it would download."""
    shutil.copytree(repository, copy, ignore=shutil.ignore_patterns(".git"))
    data = copy / "data" / "shakespeare_char"
    shutil.copy(text, data / "input.txt")
    subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, stdout=subprocess.DEVNULL)
    return copy


def watched(command: list[str], validation: re.Pattern[str], cwd: Path | None = None) -> list[Point]:
    """The validations that a training prints, until its end."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    points = []
    for line in process.stdout:
        if "parameters" in line:
            print(line.strip())
        if found := validation.match(line):
            points.append(Point(time.perf_counter() - began, int(found[1]), float(found[2])))
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return points


def show(name: str, points: list[Point]) -> None:
    """Print a curve on one line."""
    print(f"{name}: " + ", ".join(f"{p.loss:.3f} at {p.seconds:.1f} s" for p in points))


if __name__ == "__main__":
    raise SystemExit(told(main))

"""Training loops that take turns: each in a process of its own, one of them at work at a time.

A loop lies in peers/NAME.py as `train(contest)`. It says after each step that the step is done, and goes on when it
is its turn again; so all of them meet the same load of the machine, round after round.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from pydoc_data.topics import topics
from signal import SIGKILL
from typing import Any, Self, TextIO

import numpy as np
import torch
from torch import Tensor

from gptscale.config.schema import ModelConfig
from gptscale.data.tokenizer import load_tokenizer
from gptscale.model.gpt import GPTModel
from gptscale.runtime import ranks
from gptscale.runtime.device import computes_bf16, local_device, peak_memory_bytes, synchronize
from gptscale.runtime.launch import launched_rank
from gptscale.weights.gpt2 import to_layout
from gptscale.weights.source import Layout

SHAPES: dict[str, dict[str, Any]] = {
    "124m": {"preset": "124M", "context_length": 512},
    "6x384": {"emb_dim": 384, "n_heads": 6, "n_layers": 6, "context_length": 256},
    "tiny": {"emb_dim": 64, "n_heads": 2, "n_layers": 2, "context_length": 32},  # to try a script
}
SEQUENCES = {"124m": 4, "6x384": 8, "tiny": 4}
"""In a batch."""


TOLERANCE = 1e-2
"""Nats by which losses of two loops may differ: in bf16, and among ranks, sums round in other places."""


@dataclass(frozen=True)
class Setup:
    """What a loop trains, and how."""

    peer: str
    """The module in peers/."""
    model: dict[str, Any]
    """Fields of a ModelConfig."""
    batches: str
    """An .npy file of token ids (N, 2, B, T): inputs and targets."""
    path: str | None = None
    """Where the peer's own code lies; null for what is installed."""
    precision: str = "bf16"
    compile: bool = True
    lr: float = 1e-4
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    log_every_steps: int = 10
    """How often the whole loop writes a record."""
    gate_steps: int | None = None
    """Steps in which a loop computes what all do, before it does what else it documents; null for all of them."""


class Contest:
    """The side of a loop that is in the contest, in its own process."""

    def __init__(self, setup: Setup, answers: TextIO = sys.stdout) -> None:
        self.setup = setup
        self.cfg = ModelConfig(**setup.model)
        self.device = local_device()
        self.dtype = torch.bfloat16 if setup.precision == "bf16" else torch.float32
        self._answers = answers
        self._losses: list[Tensor | float] = []
        self._steps_left = 1
        self._start_clock()

    def batches(self, device: torch.device | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets (B, T) without an end, the same for all; they lie on the loop's device unless it asks."""
        found = torch.from_numpy(np.load(self.setup.batches)).to(device or self.device)
        return cycle([(inputs, targets) for inputs, targets in found])

    def weights(self, layout: Layout) -> dict[str, Tensor]:
        """The weights that all begin with, by the names of a layout."""
        model = GPTModel(self.cfg, seed=0)
        return {
            name: tensor
            for ours, p in model.named_parameters()
            for name, tensor in to_layout(ours, p.detach(), layout, self.cfg.n_layers, self.cfg.vocab_size).items()
        }

    def step_done(self, loss: Tensor | float) -> None:
        """A step is over; waits here while it is the turn of others. All ranks call this."""
        self._losses.append(loss)
        self._steps_left -= 1
        if self._steps_left == 0:
            synchronize(self.device)
            self._answer(time.perf_counter() - self._since, time.process_time() - self._cpu_since)
            self._steps_left = self._next_turn()
            self._start_clock()

    def _start_clock(self) -> None:
        self._since, self._cpu_since = time.perf_counter(), time.process_time()

    def _answer(self, seconds: float, cpu_s: float) -> None:
        if launched_rank() == 0:
            losses = [float(loss) for loss in self._losses]
            peak_bytes = peak_memory_bytes(self.device)
            print(json.dumps(asdict(Turn(seconds, cpu_s, losses, peak_bytes))), file=self._answers)
        self._losses.clear()

    def _next_turn(self) -> int:
        """How many steps to do; all ranks wait for the word of the first."""
        asked = sys.stdin.readline() if launched_rank() == 0 else ""
        steps = int(ranks.gather(asked)[0] or 0)
        if steps == 0:
            raise SystemExit
        return steps


@dataclass(frozen=True)
class Turn:
    """What a loop did in a turn."""

    seconds: float
    cpu_s: float
    """CPU time of all threads of its (first) process."""
    losses: list[float]
    peak_bytes: int


ENDING_S = 40.0
"""How long a launcher may take to end its ranks; torch's kills them after 30."""


class Contestant:
    """A loop, seen from outside; started at once, it rests after its first step. Close it, or use `with`."""

    def __init__(
        self, name: str, setup: Setup, launcher: Sequence[str] = (), env: dict[str, str] | None = None
    ) -> None:
        self.name, self.setup, self._launched = name, setup, bool(launcher)
        if not launcher:  # where there are several GPUs, Trainer would take all of them
            first_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            env = {"CUDA_VISIBLE_DEVICES": first_gpu, **(env or {})}
        self._began = time.perf_counter()
        command = [*(launcher or [sys.executable]), __file__, json.dumps(asdict(setup))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        self.turns: list[Turn] = []
        self.first_step_s = 0.0

    def wait(self) -> Self:
        """Wait until its first step is done."""
        self.turns.append(self._answer())
        self.first_step_s = time.perf_counter() - self._began
        return self

    def turn(self, steps: int) -> Turn:
        """Let it do some steps."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which the missing answer tells
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        self.turns.append(self._answer())
        return self.turns[-1]

    @property
    def losses(self) -> list[float]:
        """Of all steps so far."""
        return [loss for turn in self.turns for loss in turn.losses]

    @property
    def peak_bytes(self) -> int:
        """The most memory that it held."""
        return max(turn.peak_bytes for turn in self.turns)

    def close(self) -> None:
        """End its process."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:  # nobody knows how long it would go on
            if self._launched:  # a launcher that is killed leaves its ranks at work
                self._process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(ENDING_S)
            self._process.kill()
        self.close()

    def _answer(self) -> Turn:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            if code == -SIGKILL:
                raise SystemExit(f"{self.name} was killed; if that was for memory, let fewer take part at a time")
            raise SystemExit(f"{self.name} ended with exit code {code}; its words stand above")
        return Turn(**json.loads(line))


def interleaved(contestants: Sequence[Contestant], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds of a step of each in each round; the order turns round from one round to the next."""
    seconds: dict[str, list[float]] = {c.name: [] for c in contestants}
    for number in range(rounds):
        for contestant in sorted(contestants, key=contestants.index, reverse=number % 2 == 1):
            seconds[contestant.name].append(contestant.turn(steps).seconds / steps)
    return seconds


def largest_difference(pairs: Iterable[tuple[float, float]]) -> float:
    """Of losses in pairs; nan if one of them is."""
    return float(np.max([abs(a - b) for a, b in pairs]))


def ratios(of: Sequence[float], to: Sequence[float]) -> tuple[float, float, float]:
    """The median of the rounds' ratios, and the least and the most."""
    each = sorted(a / b for a, b in zip(of, to, strict=True))
    return statistics.median(each), each[0], each[-1]


def prose() -> str:
    """English text that every Python has: the reference behind `help()`."""
    return "\n".join(topics.values())


def prose_ids() -> np.ndarray:
    """That text in GPT-2's token ids, (n,)."""
    return np.array(load_tokenizer("gpt2").encode(prose()), np.int64)


def write_batches(path: Path, count: int, sequences: int, context_length: int) -> None:
    """Write batches of prose as an .npy file of token ids (count, 2, B, T)."""
    length = count * sequences * context_length
    stream = np.resize(prose_ids(), length + 1)
    both = np.stack([stream[:-1], stream[1:]]).reshape(2, count, sequences, context_length)
    np.save(path, both.swapaxes(0, 1))


def hardware_precision(device: torch.device) -> str:
    """bf16 where the device computes it in hardware, else fp32: emulated, it takes hundreds of times longer."""
    return "bf16" if computes_bf16(device) else "fp32"


def best_matmul_flops(dtype: torch.dtype, device: torch.device, seconds: float = 2.0) -> float:
    """FLOP/s of the fastest matrix product found in some time, over several sizes."""
    best = 0.0
    sizes = (1024, 2048, 3072) if device.type == "cpu" else (4096, 8192, 16384)
    for size in sizes:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        best = max(best, 2 * size**3 / _least_s(lambda a=a, b=b: a @ b, device, seconds / len(sizes)))
    return best


def _least_s(work: Callable[[], object], device: torch.device, budget_s: float) -> float:
    least = float("inf")
    until = time.perf_counter() + budget_s
    while time.perf_counter() < until or least == float("inf"):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        least = min(least, time.perf_counter() - began)
    return least


def _train() -> None:
    parser = argparse.ArgumentParser(description="One loop of a contest; the other scripts start it.")
    parser.add_argument("setup", type=json.loads)
    setup = Setup(**parser.parse_args().setup)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what peers print goes to stderr, so that the answers have stdout for themselves
    importlib.import_module(f"peers.{setup.peer}").train(Contest(setup, answers))


if __name__ == "__main__":
    _train()

"""The loader beside nanoGPT's way of making batches and beside a plain copy of memory, and what the order costs.

    python benchmarks/loader.py [--rounds 15] [--tokens 200_000_000]

All work on one core over the same warm file, in interleaved rounds; the table shows medians. nanoGPT's way is written
anew from its description: a random start for each sample, a slice of the memory map widened to int64 for the inputs and
another for the targets, then a stack of each. The copy is of the bytes that the loader produces, int64 inputs and
targets: the batches of a whole round lie ready in memory, more than a cache holds, and are copied into one place. A
second copy, of one step's batches again and again, shows what the processor's cache would make of it. Ratios above 1
mean that ours is faster. Exits with 1 where a bound is missed.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mistakes import at_least, positive, told

from gptscale.data.loader import MicroBatch, StepLoader
from gptscale.data.sampler import Sampler, count_samples
from gptscale.data.shard import ShardWriter, open_shard
from gptscale.data.stream import TokenStream

CONTEXT = 1024
SEQUENCES = 64  # in a micro-batch
MICRO_BATCHES = 8  # in a step: 524,288 tokens
STEPS = 16  # of each way in a round
AHEAD = 2  # steps that the loader reads ahead
OVER_NANOGPT, OVER_COPY, ORDER_BYTES, ORDER_S = 4, 0.5, 1e6, 0.05


def main() -> int:
    """Measure and compare; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=15)
    parser.add_argument("--tokens", type=at_least(CONTEXT + 2), default=200_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train-00000.bin")
        tokens = np.random.default_rng(0).integers(0, 50257, arguments.tokens).astype(np.uint16)
        with ShardWriter(path, "uint16") as writer:
            writer.append(tokens)
            writer.finish(np.zeros((1, 2), np.int64))
        del tokens
        mapped = open_shard(path)
        mapped.max()  # which makes the file warm
        fast = compare(mapped, arguments.rounds)
    return 0 if order_is_cheap() and fast else 1


def compare(mapped: np.ndarray, rounds: int) -> bool:
    """Time a step's batches in each way, round after round; whether ours is fast enough."""
    loader = step_loader(mapped, (rounds + 1) * (STEPS + AHEAD) + STEPS)
    steps = [joined(loader.next_step()) for _ in range(STEPS)]
    ready, place = itertools.cycle(steps), np.zeros_like(steps[0])
    ways: dict[str, Callable[[], object]] = {
        "ours, int64, with order and thread": loader.next_step,
        "nanoGPT's get_batch": lambda: [nanogpt_batch(mapped) for _ in range(MICRO_BATCHES)],
        "a copy of the same bytes, from memory": lambda: np.copyto(place, next(ready)),
        "a copy of the same bytes, from the cache": lambda: np.copyto(place, steps[0]),
    }
    seconds = {name: statistics.median(times) for name, times in timed(ways, rounds).items()}
    loader.close()
    ours, theirs, memory, cache = seconds.values()
    print(f"\n{MICRO_BATCHES * SEQUENCES * CONTEXT:,} tokens a step, medians of {rounds} rounds\n")
    for name, median in seconds.items():
        print(f"{name:45s} {place.nbytes / median / 1e9:7.2f} GB/s")
    print(f"\nagainst nanoGPT's get_batch  {theirs / ours:6.2f}x   (at least {OVER_NANOGPT}, aim 10)")
    print(f"against a copy of memory     {memory / ours:6.2f}x   (at least {OVER_COPY}, aim 0.8)")
    print(f"against a copy in the cache  {cache / ours:6.2f}x")
    return theirs / ours >= OVER_NANOGPT and memory / ours >= OVER_COPY


def joined(step: list[MicroBatch]) -> np.ndarray:
    """The bytes of a step's batches, (2 * micro-batches, B, T)."""
    return torch.stack([part for batch in step for part in (batch.inputs, batch.targets)]).numpy()


def timed(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each way in each round; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(rounds + 1):
        for name, way in ways.items():
            for _ in range(AHEAD):
                way()  # untimed: these the loader has read while another way was timed
            began = time.perf_counter()
            for _ in range(STEPS):
                way()
            if round_number:
                seconds[name].append((time.perf_counter() - began) / STEPS)
    return seconds


def step_loader(mapped: np.ndarray, steps: int) -> StepLoader:
    """The loader of a run over the file."""
    stream = TokenStream([mapped])
    return StepLoader(
        stream,
        sampler=Sampler(count_samples(len(stream), CONTEXT, CONTEXT), CONTEXT, seed=0),
        context_length=CONTEXT,
        sequences_per_step=SEQUENCES * MICRO_BATCHES,
        micro_batch_sequences=SEQUENCES,
        rank=0,
        world=1,
        total_steps=steps,
        steps_ahead=AHEAD,
    )


def nanogpt_batch(mapped: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch in nanoGPT's way."""
    starts = torch.randint(len(mapped) - CONTEXT, (SEQUENCES,))
    inputs = torch.stack([torch.from_numpy(mapped[i : i + CONTEXT].astype(np.int64)) for i in starts])
    targets = torch.stack([torch.from_numpy(mapped[i + 1 : i + 1 + CONTEXT].astype(np.int64)) for i in starts])
    return inputs, targets


ORDER = """
import time, tracemalloc
import numpy as np
from gptscale.data.order import order
samples = 10**12 // 1024
tracemalloc.start()
began = time.perf_counter()
order(1337, 0, np.arange(samples - 512, samples), samples)
print(time.perf_counter() - began, tracemalloc.get_traced_memory()[1])
"""


def order_is_cheap() -> bool:
    """Whether the first step's order of 10**12 tokens is, in a fresh process."""
    done = subprocess.run([sys.executable, "-c", ORDER], stdout=subprocess.PIPE, text=True, check=True)
    seconds, size = map(float, done.stdout.split())
    bounds = f"at most {ORDER_BYTES / 1e6:g} MB, {ORDER_S} s"
    print(f"order of 10^12 tokens at 1,024: {size / 1e6:.3f} MB, {seconds:.4f} s   ({bounds})")
    return size <= ORDER_BYTES and seconds <= ORDER_S


if __name__ == "__main__":
    raise SystemExit(told(main))

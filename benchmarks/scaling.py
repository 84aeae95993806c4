"""Two processes with a thread each beside one process with two threads, on the same batches, and what they send.

    python benchmarks/scaling.py [--shape 6x384] [--rounds 11] [--steps 2] [--precision bf16]

Both compute the same steps, in turn; the two processes exchange gradients under DDP over Gloo. Prints their tokens/s
as a share of the one process's, and the bytes that the loopback interface carried in a step beside those that DDP
has to send: the gradients, 4 bytes a parameter, once from each of two ranks in each half of a ring's all-reduce.
Anything else that uses the loopback interface at that time is counted too.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from mistakes import positive, told
from side_by_side import (
    SEQUENCES,
    SHAPES,
    TOLERANCE,
    Contestant,
    Setup,
    hardware_precision,
    interleaved,
    largest_difference,
    ratios,
    write_batches,
)

from gptscale.config.schema import ModelConfig
from gptscale.model.gpt import GPTModel
from gptscale.runtime.device import local_device

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
LEAST = 0.90


def main() -> int:
    """Measure and compare; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="6x384")
    parser.add_argument("--rounds", type=positive, default=11)
    parser.add_argument("--steps", type=positive, default=2)
    parser.add_argument("--precision", choices=["bf16", "fp32"], help="default: bf16 where it is the faster one here")
    asked = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    precision = asked.precision or hardware_precision(local_device())
    model = SHAPES[asked.shape]
    with tempfile.TemporaryDirectory() as folder:
        batches = Path(folder, "batches.npy")
        write_batches(batches, 50, SEQUENCES[asked.shape], ModelConfig(**model).context_length)
        setup = Setup("gptscale_step", model, str(batches), precision=precision)
        with (
            Contestant("one", setup, env={"OMP_NUM_THREADS": "2"}) as one,
            Contestant("two", setup, TORCHRUN, env={"OMP_NUM_THREADS": "1"}) as two,
        ):
            one.wait()
            two.wait()
            interleaved([one, two], 1, asked.steps)  # to warm up
            sent = sent_bytes(two, asked.steps)
            seconds = interleaved([one, two], asked.rounds, asked.steps)
            differing = largest_difference(zip(one.losses, two.losses, strict=False))
    median, least, most = ratios(seconds["one"], seconds["two"])
    print(f"{asked.shape}, {precision}, {asked.rounds} rounds of {asked.steps} steps")
    print(f"one process, 2 threads:   {statistics.median(seconds['one']):.3f} s a step")
    print(
        f"two processes, 1 thread:  {statistics.median(seconds['two']):.3f} s a step; losses differ by {differing:.4f}"
    )
    print(f"two against one: {median:.3f} ({least:.3f} to {most:.3f}); at least {LEAST} is asked")
    needed = 2 * 4 * sum(p.numel() for p in GPTModel(ModelConfig(**model), seed=None).parameters())
    print(
        f"sent in a step: {sent / 1e6:.1f} MB, {sent / needed:.2f} times the {needed / 1e6:.1f} MB that DDP has to send"
    )
    return 0 if median >= LEAST and differing <= TOLERANCE else 1


def sent_bytes(contestant: Contestant, steps: int) -> float:
    """Bytes that the loopback interface sent in a step."""
    before = loopback_bytes()
    contestant.turn(steps)
    return (loopback_bytes() - before) / steps


def loopback_bytes() -> int:
    """Bytes sent so far through the loopback interface."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))


if __name__ == "__main__":
    raise SystemExit(told(main))

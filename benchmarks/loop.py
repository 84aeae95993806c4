"""The whole loop beside a bare step: what the loader, the record, W&B and everything else around a step cost.

    python benchmarks/loop.py [--shape 6x384] [--rounds 21] [--steps 2] [--precision bf16]

Both train the same model, compiled, and take turns of a few steps. The loop writes a record in every turn, which with
the default of --steps is five times as often as a run does by default. A second bare step takes turns too, so that the
loop's turn lies between two of the bare step, and how far these are apart is the noise of the measurement. Prints the
loop's tokens/s as a share of the bare steps', the median of the rounds' ratios, and exits with 1 if it is below 0.98,
or if the bare step differs from itself by more than that margin, which leaves the question open. CPU time is that of a
loop's process, without W&B's.
"""

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from mistakes import positive, told
from side_by_side import SEQUENCES, SHAPES, Contestant, Setup, hardware_precision, interleaved, ratios, write_batches

from gptscale.config.schema import ModelConfig
from gptscale.runtime.device import local_device

LEAST = 0.98


def main() -> int:
    """Measure and compare; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="6x384")
    parser.add_argument("--rounds", type=positive, default=21)
    parser.add_argument("--steps", type=positive, default=2, help="of a turn, and from record to record")
    parser.add_argument("--precision", choices=["bf16", "fp32"], help="default: bf16 where it is the faster one here")
    asked = parser.parse_args()
    precision = asked.precision or hardware_precision(local_device())
    model = SHAPES[asked.shape]
    with tempfile.TemporaryDirectory() as folder:
        batches = Path(folder, "batches.npy")
        write_batches(batches, 50, SEQUENCES[asked.shape], ModelConfig(**model).context_length)
        bare = Setup("bare", model, str(batches), precision=precision, log_every_steps=asked.steps)
        with (
            Contestant("bare", bare) as first,
            Contestant("loop", replace(bare, peer="gptscale_loop"), env={"WANDB_SILENT": "true"}) as loop,
            Contestant("bare again", bare) as second,
        ):
            contestants = [first, loop, second]
            for contestant in contestants:
                contestant.wait()
            interleaved(contestants, 2, asked.steps)  # to warm up
            seconds = interleaved(contestants, asked.rounds, asked.steps)
    print(f"{asked.shape}, {precision}, {asked.rounds} rounds of {asked.steps} steps")
    for contestant in contestants:
        cpu_s = statistics.median(turn.cpu_s for turn in contestant.turns[-asked.rounds :]) / asked.steps
        print(f"{contestant.name:10}  {statistics.median(seconds[contestant.name]):.3f} s a step, {cpu_s:.3f} s of CPU")
    both = [(a + b) / 2 for a, b in zip(seconds["bare"], seconds["bare again"], strict=True)]
    itself, least, most = ratios(seconds["bare"], seconds["bare again"])
    print(f"bare step against itself: {itself:.3f} ({least:.3f} to {most:.3f})")
    median, least, most = ratios(both, seconds["loop"])
    print(f"whole loop against the bare step: {median:.3f} ({least:.3f} to {most:.3f}); at least {LEAST} is asked")
    if not LEAST <= itself <= 1 / LEAST:
        print("inconclusive: the bare step differs from itself by more than the loop may from it; try a quieter hour")
        return 1
    return 0 if median >= LEAST else 1


if __name__ == "__main__":
    raise SystemExit(told(main))

"""The whole loop beside a bare step: what the loader, the record, W&B and everything else around a step cost.

    python benchmarks/loop.py [--shape 6x384] [--rounds 9] [--steps 10]

Both train the same model, compiled, in bf16, and take turns. A record is written every 10 steps, so with 10 steps a
round has one. Prints the loop's tokens/s as a share of the bare step's; exits with 1 if it is below 0.98.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from side_by_side import SEQUENCES, SHAPES, Contestant, Setup, interleaved, ratios, write_batches

from gptscale.config.schema import ModelConfig

LEAST = 0.98


def main() -> int:
    """Measure and compare; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="6x384")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10)
    asked = parser.parse_args()
    model = SHAPES[asked.shape]
    with tempfile.TemporaryDirectory() as folder:
        batches = Path(folder, "batches.npy")
        write_batches(batches, 50, SEQUENCES[asked.shape], ModelConfig(**model).context_length)
        bare = Setup("bare", model, str(batches))
        with Contestant("bare", bare) as bare_step, Contestant("loop", replace(bare, peer="gptscale_loop")) as loop:
            bare_step.wait()
            loop.wait()
            interleaved([bare_step, loop], 1, asked.steps)  # to warm up
            seconds = interleaved([bare_step, loop], asked.rounds, asked.steps)
    median, least, most = ratios(seconds["bare"], seconds["loop"])
    print(f"whole loop against the bare step: {median:.3f} ({least:.3f} to {most:.3f}); at least {LEAST} is asked")
    return 0 if median >= LEAST else 1


if __name__ == "__main__":
    raise SystemExit(main())

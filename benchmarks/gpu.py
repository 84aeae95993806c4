"""What one large GPU gives: tokens/s of GPT-2's four sizes, gptscale beside its peers, real data beside random tokens.

    python benchmarks/gpu.py [--nanogpt ~/nanoGPT] [--minutes 9]

One command, made for a machine that is lent for minutes: what does not fit into the time is left out, and the table
comes at the end in any case. All of a group are started together, so that they compile side by side, and then take
turns. bf16, compiled, T=1,024, random weights. Asks for 60 GB of the GPU's memory.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from side_by_side import Contestant, Setup, interleaved, ratios, write_batches

from gptscale.config.schema import ModelConfig
from gptscale.model.flops import flops_per_token
from gptscale.runtime.device import describe_device, local_device, peak_flops

T = 1024
SEQUENCES = {"124M": 16, "350M": 8, "774M": 8, "1558M": 4}
"""In a micro-batch."""
ROUNDS, STEPS = 5, 10
GROUP_S = 150
"""Seconds that a group may need; none is started later than that before the end."""


def main() -> None:
    """Measure, and print the table whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", help="path of nanoGPT's repository")
    parser.add_argument("--minutes", type=float, default=9)
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu.py needs a CUDA device; benchmarks/train.py measures a CPU")
    ends = time.monotonic() + 60 * asked.minutes
    lines: list[str] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for preset in SEQUENCES:
                if time.monotonic() + GROUP_S > ends:
                    lines.append(f"{preset}: left out, {asked.minutes:g} minutes are nearly over")
                else:
                    lines += group(preset, Path(folder), asked.nanogpt)
    finally:
        print(f"\n{describe_device(local_device())}, torch {torch.__version__}, {ROUNDS} rounds of {STEPS} steps\n")
        print("\n".join(lines))


def group(preset: str, folder: Path, nanogpt: str | None) -> list[str]:
    """Lines of the table for one size; the smallest is compared with others."""
    model = {"preset": preset, "context_length": T}
    batches = folder / f"{preset}.npy"
    write_batches(batches, 20, SEQUENCES[preset], T)
    ours = Setup("gptscale_step", model, str(batches))
    setups = {f"gptscale {preset}": ours}
    if preset == "124M":
        setups["whole loop, real data"] = replace(ours, peer="gptscale_loop")
        setups["Trainer, compiled"] = replace(ours, peer="huggingface")
        if nanogpt:
            setups["nanoGPT, compiled"] = replace(ours, peer="nanogpt", path=nanogpt)
    with ExitStack() as stack:
        contestants = [
            stack.enter_context(
                Contestant(name, setup, env={"TORCHINDUCTOR_CACHE_DIR": str(folder / f"cache-{number}")})
            )
            for number, (name, setup) in enumerate(setups.items())
        ]
        for contestant in contestants:
            contestant.wait()
        interleaved(contestants, 1, STEPS)  # to warm up
        seconds = interleaved(contestants, ROUNDS, STEPS)
    return [line(contestant, contestants[0], seconds) for contestant in contestants]


def line(contestant: Contestant, ours: Contestant, seconds: dict[str, list[float]]) -> str:
    """One row."""
    cfg = ModelConfig(**contestant.setup.model)
    tokens = SEQUENCES[contestant.setup.model["preset"]] * T
    rate = tokens / statistics.median(seconds[contestant.name])
    share = rate * flops_per_token(cfg) / peak_flops(local_device(), torch.bfloat16)
    median, least, most = ratios(seconds[contestant.name], seconds[ours.name])
    return (
        f"{contestant.name:24} {rate:10,.0f} tokens/s  {share:5.1%} of the peak  {contestant.peak_bytes / 1e9:6.1f} GB"
        f"  gptscale's step against it {median:.3f} ({least:.3f} to {most:.3f})"
    )


if __name__ == "__main__":
    main()

"""torch's fused AdamW beside DeepSpeed's own, on the flat tensors that ZeRO shows to an optimizer.

    python benchmarks/optimizer.py [--parameters 100e6] [--rounds 9] [--device cpu]

Times one update of each, in turn within every round, so that a busy machine slows both. On a CPU DeepSpeed's is
DeepSpeedCPUAdam, on CUDA FusedAdam; DeepSpeed builds them with a C++ compiler. Prints the medians,
their ratio with its spread over the rounds, and by how much the two disagree.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from mistakes import positive, told

from gptscale.runtime.device import describe_device, local_device, synchronize

SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
WARM_UP_ROUNDS = 2


def main() -> None:
    """Time both and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=lambda text: positive(f"{float(text):.0f}"), default="100e6")
    parser.add_argument("--rounds", type=positive, default=9)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=local_device().type)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCH_EXTENSIONS_DIR"] = folder  # in the user's own, one killed start leaves a lock for ever
        optimizers = both(arguments.parameters, device)
    times = interleaved({name: make.step for name, make in optimizers.items()}, arguments.rounds, device)
    print(f"\nAdamW, {arguments.parameters / 1e6:g} M parameters, fp32, on {describe_device(device)}\n")
    for name, seconds in times.items():
        print(f"{name:20} {1000 * statistics.median(seconds):8.2f} ms")
    ratios = sorted(theirs / ours for ours, theirs in zip(*times.values(), strict=True))
    first, second = times
    print(
        f"\n{second} takes {statistics.median(ratios):.2f} of the time of {first} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )
    ours, theirs = (optimizer.param_groups[0]["params"][0].detach() for optimizer in optimizers.values())
    print(f"largest difference of a weight: {float((ours - theirs).abs().max()):.2g}")


def both(parameters: int, device: torch.device) -> dict[str, torch.optim.Optimizer]:
    """The two optimizers on equal weights with equal gradients."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    weights = torch.randn(parameters, generator=torch.Generator().manual_seed(1))
    gradients = torch.randn(parameters, generator=torch.Generator().manual_seed(2)).to(device)
    flats = [torch.nn.Parameter(weights.to(device, copy=True)) for _ in range(2)]
    for flat in flats:
        flat.grad = gradients
    theirs = FusedAdam if device.type == "cuda" else DeepSpeedCPUAdam
    return {
        "torch, fused": torch.optim.AdamW([flats[0]], fused=True, **SETTINGS),
        theirs.__name__: theirs([flats[1]], **SETTINGS),
    }


def interleaved(steps: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each round by name; the order turns round from one to the next."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM_UP_ROUNDS + rounds):
        for name in sorted(steps, reverse=number % 2 == 1):
            synchronize(device)
            start = time.perf_counter()
            steps[name]()
            synchronize(device)
            if number >= WARM_UP_ROUNDS:
                times[name].append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    raise SystemExit(told(main))

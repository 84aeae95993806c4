"""Where the time of a training step goes, by operator group.

    python benchmarks/profile_step.py [--shape 6x384] [--steps 3] [--precision bf16] [--no-compile] [--rows 12]

Counts each operator's own time: on CUDA that of its kernels, on a CPU that of the thread that called it. Prints the
groups, then the operators that take most, with the shapes of what they work on.
"""

import argparse
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import torch._inductor.config as inductor
from mistakes import positive, told
from peers import gptscale_step
from side_by_side import SEQUENCES, SHAPES, Contest, Setup, hardware_precision, write_batches
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gptscale.config.schema import ModelConfig
from gptscale.runtime.device import local_device

WARM_UP_STEPS = 2
GROUPS = {
    "attention": ("attention", "flash", "fmha", "cudnn"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "gemm", "nvjet", "cutlass", "xmma"),
    "fused by torch.compile": ("cpp_fused", "triton_"),
    "optimizer": ("adam", "Muon", "Optimizer"),
    "gradient norm and clipping": ("vector_norm", "_foreach"),
    "copies and fills": ("copy", "fill", "Memcpy", "Memset"),
}
"""Parts of operators' names; the first group that has one takes the operator."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="6x384")
    parser.add_argument("--steps", type=positive, default=3)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=hardware_precision(local_device()))
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--rows", type=positive, default=12)
    asked = parser.parse_args()
    model = SHAPES[asked.shape]
    inductor.cpp.enable_kernel_profile = True  # else a profile on a CPU does not see what was fused
    with tempfile.TemporaryDirectory() as folder:
        batches = Path(folder, "batches.npy")
        write_batches(batches, WARM_UP_STEPS, SEQUENCES[asked.shape], ModelConfig(**model).context_length)
        setup = Setup("gptscale_step", model, str(batches), precision=asked.precision, compile=not asked.no_compile)
        show(profiled(setup, asked.steps), asked.steps, asked.rows)


class Enough(Exception):  # noqa: N818
    """All steps are done."""


class Watched(Contest):
    """A contest of one, with a profiler in place of the others."""

    def __init__(self, setup: Setup, steps: int) -> None:
        super().__init__(setup)
        self._steps_done, self._last = 0, WARM_UP_STEPS + steps
        cuda = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
        self.profile = profile(activities=[ProfilerActivity.CPU, *cuda], record_shapes=True)

    def step_done(self, loss: Tensor | float) -> None:
        self._steps_done += 1
        if self._steps_done == WARM_UP_STEPS:
            self.profile.start()
        if self._steps_done == self._last:
            self.profile.stop()
            raise Enough


def profiled(setup: Setup, steps: int) -> list[tuple[str, str, float]]:
    """Name, shapes and microseconds of its own of each operator in some steps."""
    contest = Watched(setup, steps)
    with suppress(Enough):
        gptscale_step.train(contest)
    found = contest.profile.key_averages(group_by_input_shape=True)
    if contest.device.type == "cuda":  # an operator has the time of its kernels too, and an annotation what is in it
        kernels = [e for e in found if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
        return [(e.key, str(e.input_shapes), float(e.self_device_time_total)) for e in kernels]
    return [(e.key, str(e.input_shapes), float(e.self_cpu_time_total)) for e in found]


def show(times: list[tuple[str, str, float]], steps: int, rows: int) -> None:
    """Print the groups and the largest operators."""
    groups: Counter[str] = Counter()
    for name, _, time in times:
        group = next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), "the rest")
        groups[group] += time
    total = sum(groups.values())
    print(f"{total / steps / 1000:.1f} ms a step\n")
    for group, time in groups.most_common():
        print(f"{group:28} {time / steps / 1000:9.1f} ms {time / total:6.1%}")
    print()
    for name, shapes, time in sorted(times, key=lambda t: -t[2])[:rows]:
        print(f"{time / steps / 1000:9.1f} ms {time / total:6.1%}  {name[:60]} {shapes[:80]}")


if __name__ == "__main__":
    raise SystemExit(told(main))

"""What one large GPU gives: tokens/s of GPT-2's four sizes, gptscale beside its peers, its whole loop beside its step.

    python benchmarks/gpu.py [--nanogpt ~/nanoGPT] [--minutes 9]

One command, made for a machine that is lent for minutes. The sizes come in two groups; all loops of a group are started
together, so that they compile side by side, and then take turns. Who fails is left out with a line, and the table comes
at the end of the time in any case, with what was measured by then. bf16, compiled, T=1,024, random weights, prose. A
group takes up to 75 GB of the GPU's memory. What needs `datasets`, DeepSpeed, gigatoken or W&B is avoided where they
are not installed; a C compiler has to be there, and nanoGPT's path has to be a folder on that machine. Exits with 1
where somebody is left out, time runs out, losses differ or a bound is missed. --tiny tries the script with a tiny model
in place of the four, on any device, whatever its speed.

Steps take batches that lie on the GPU; the whole loop reads its own samples and reports no loss, so no gate covers it.
"""

import argparse
import math
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from mistakes import folder_with, told
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
from gptscale.model.size import flops_per_token
from gptscale.runtime.compiled import finds_python_headers, found_compiler
from gptscale.runtime.device import describe_device, local_device, peak_flops

ROUNDS, TINY_ROUNDS, STEPS = 9, 3, 20


@dataclass(frozen=True)
class Size:
    """A model, its micro-batch, and the tokens/s asked of it on an H200."""

    model: dict[str, Any]
    sequences: int
    asked: int

    @property
    def tokens(self) -> int:
        """In a step."""
        return self.sequences * ModelConfig(**self.model).context_length


GPT2 = {
    preset: Size({"preset": preset, "context_length": 1024}, sequences, asked)
    for preset, sequences, asked in (
        ("124M", 16, 500_000),
        ("350M", 8, 196_000),
        ("774M", 8, 95_000),
        ("1558M", 4, 53_000),
    )
}
GROUPS = (("124M", "350M"), ("774M", "1558M"))
COMPARED = "124M"
"""The size that is compared with others."""
PEERS = {"nanogpt": ("nanoGPT, compiled", 1.25), "huggingface": ("Trainer, compiled", 1.5)}
"""How many times the peer's tokens/s are asked."""
LOOP, LOOP_ASKED = "whole loop", 0.995


@dataclass
class Table:
    """What has been measured so far, of so many rounds."""

    rounds: int
    rows: list[str] = field(default_factory=list)
    comparisons: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)


def main() -> int:
    """Measure, and print the table whatever happens; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=folder_with("model.py"), help="path of nanoGPT's repository")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--tiny", action="store_true", help="try the script")
    asked = parser.parse_args()
    if not (asked.tiny or torch.cuda.is_available()):
        parser.error("needs a CUDA device; benchmarks/train.py measures a CPU")
    if not 0 < asked.minutes < math.inf:
        parser.error("--minutes has to be a number above 0")
    compiler = found_compiler(local_device())
    if compiler is None or not finds_python_headers(compiler):
        parser.error("nothing here can be compiled: install gcc, g++ and python3-dev, or name compilers in CC and CXX")
    sizes = dict.fromkeys(GPT2, Size(SHAPES["tiny"], SEQUENCES["tiny"], 0)) if asked.tiny else GPT2
    table = Table(TINY_ROUNDS if asked.tiny else ROUNDS)
    signal.signal(signal.SIGALRM, end_of_time)
    signal.setitimer(signal.ITIMER_REAL, 60 * asked.minutes)
    try:
        for names in GROUPS:
            try:
                measure({name: sizes[name] for name in names}, asked.nanogpt, table)
            except SystemExit as failure:
                table.left_out.append(f"{' and '.join(names)} broke off: {failure}")
    except TimeIsOver:
        table.left_out.append(f"{asked.minutes:g} minutes were over before all was measured")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(f"\n{describe_device(local_device())}, torch {torch.__version__}, rounds of {STEPS} steps\n")
        missed = [] if asked.tiny else table.missed
        print("\n".join([*table.rows, "", *table.comparisons, *table.left_out, *missed]))
    return 1 if table.left_out or missed else 0


class TimeIsOver(Exception):  # noqa: N818  # no error
    """Said once, wherever the script is; a TimeoutError is an OSError, and deleting a folder passes over those."""


def end_of_time(*_: object) -> None:
    """Leave what is being measured."""
    raise TimeIsOver


def measure(sizes: dict[str, Size], nanogpt: str | None, table: Table) -> None:
    """Put one group into the table, with the rounds that were whole if it breaks off."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        contestants = {
            name: stack.enter_context(Contestant(name, setup, env=own_cache(folder, number)))
            for number, (name, setup) in enumerate(setups(sizes, nanogpt, Path(folder)).items())
        }
        working = [contestant for contestant in contestants.values() if works(contestant, table)]
        compiled_s = time.perf_counter() - began
        seconds: dict[str, list[float]] = {contestant.name: [] for contestant in working}
        try:
            for number in range(table.rounds):
                in_turn = working if number % 2 == 0 else working[::-1]
                for name, (of_round,) in interleaved(in_turn, 1, STEPS).items():
                    seconds[name].append(of_round)
        finally:
            if seconds and all(seconds.values()):
                tell(
                    working,
                    {name: each[: min(map(len, seconds.values()))] for name, each in seconds.items()},
                    sizes,
                    table,
                )
    print(
        f"{', '.join(contestants)}: {compiled_s:.0f} s to start, {time.perf_counter() - began:.0f} s in all", flush=True
    )


def tell(working: Sequence[Contestant], seconds: dict[str, list[float]], sizes: dict[str, Size], table: Table) -> None:
    """Put what was measured into the table."""
    for contestant in working:
        size = sizes[contestant.name if contestant.name in sizes else COMPARED]
        rate = size.tokens / statistics.median(seconds[contestant.name])
        table.rows.append(row(contestant, size, rate, len(seconds[contestant.name])))
        if contestant.setup.peer == "gptscale_step" and rate < size.asked:
            table.missed.append(f"missed: {contestant.name} at {rate:,.0f} tokens/s, where {size.asked:,} are asked")
    compare(seconds, {contestant.name: contestant.losses for contestant in working}, table)


def setups(sizes: dict[str, Size], nanogpt: str | None, folder: Path) -> dict[str, Setup]:
    """Who takes part in a group: each size's step by its name, and those that one of them is compared with."""
    precision = hardware_precision(local_device())
    found = {}
    for name, size in sizes.items():
        batches = folder / f"{name}.npy"
        write_batches(batches, 20, size.sequences, ModelConfig(**size.model).context_length)
        found[name] = Setup("gptscale_step", size.model, str(batches), precision=precision)
    if COMPARED in sizes:
        ours = found[COMPARED]
        found[LOOP] = replace(ours, peer="gptscale_loop")
        found[PEERS["huggingface"][0]] = replace(ours, peer="huggingface")
        if nanogpt:
            found[PEERS["nanogpt"][0]] = replace(ours, peer="nanogpt", path=nanogpt)
    return found


def own_cache(folder: str, number: int) -> dict[str, str]:
    """What keeps a loop from finding what another has compiled."""
    return {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache-{number}"}


def works(contestant: Contestant, table: Table) -> bool:
    """Whether it comes through its first steps: memory is fullest after the optimizer's state is made in the first."""
    try:
        contestant.wait().turn(STEPS)
    except (SystemExit, OSError) as failure:
        table.left_out.append(f"left out: {failure}")
        return False
    return True


def row(contestant: Contestant, size: Size, rate: float, rounds: int) -> str:
    """What one loop reached."""
    dtype = torch.bfloat16 if contestant.setup.precision == "bf16" else torch.float32
    share = rate * flops_per_token(ModelConfig(**size.model)) / peak_flops(local_device(), dtype)
    ours = contestant.setup.peer == "gptscale_step"
    wanted = f"  at least {size.asked:,} is asked of an H200" if ours and size.asked else ""
    reached = f"{rate:10,.0f} tokens/s  {share:5.1%} of the peak  {contestant.peak_bytes / 1e9:5.1f} GB"
    return f"{contestant.name:22} {reached}  {rounds} rounds{wanted}"


def compare(seconds: dict[str, list[float]], losses: dict[str, list[float]], table: Table) -> None:
    """Ratios to our loops of the same model, the median of the rounds' and their range.

    Trainer is compared with our whole loop, as it is one; nanoGPT is driven as our step is. Losses over the first
    steps have to be the same, else nothing is compared.
    """
    if COMPARED not in seconds:
        return
    found = []
    for peer, (name, wanted) in PEERS.items():
        if name not in seconds:
            continue
        ours = LOOP if peer == "huggingface" and LOOP in seconds else COMPARED
        difference = largest_difference(zip(losses[COMPARED][:STEPS], losses[name][:STEPS], strict=True))
        if difference <= TOLERANCE:
            found.append((f"gptscale, {ours}, against {name}", ratios(seconds[name], seconds[ours]), wanted))
        else:
            table.left_out.append(f"not compared with {name}: losses differ by {difference:.4f}")
    if LOOP in seconds:
        on_gpu = ratios(seconds[COMPARED], seconds[LOOP])
        found.append(("whole loop against the step on tokens that lie on the device", on_gpu, LOOP_ASKED))
    for what, (median, least, most), wanted in found:
        line = f"{what}: {median:.3f} ({least:.3f} to {most:.3f}); at least {wanted} is asked"
        table.comparisons.append(line)
        if median < wanted:
            table.missed.append(f"missed: {line}")


if __name__ == "__main__":
    raise SystemExit(told(main))

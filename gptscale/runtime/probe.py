"""What this machine has and how fast it is, one row for each thing that a run can trip over."""

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from gptscale.runtime import ranks
from gptscale.runtime.device import local_device, peak_flops, synchronize
from gptscale.runtime.launch import launched_world

Verdict = Literal["good", "look", "bad"]

MIB = 2**20
SHM_BYTES = 2**30
SLOW_DISK_BYTES_PER_S = 100e6
CLOCK_SKEW_S = 2.0


@dataclass(frozen=True)
class Row:
    """One thing, what was found, and what to do about it."""

    name: str
    found: str
    verdict: Verdict = "good"
    advice: str = ""


def machine_rows(folder: Path) -> Iterator[Row]:
    """All rows of this machine; folder is where a run would be kept. All ranks of a launch call this together."""
    device = local_device()
    yield Row("Python", platform.python_version())
    yield Row("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}")
    yield _gpus()
    yield _nccl()
    yield Row("matrix product", f"{peak_flops(device, torch.float32) / 1e12:.2f} TFLOP/s in fp32")
    yield Row("memory", f"{copy_bytes_per_s(device) / 1e9:.1f} GB/s copied")
    yield _all_reduce(device)
    yield _shared_memory()
    yield _disk(folder)
    yield _clock()


def copy_bytes_per_s(device: torch.device) -> float:
    """Bytes read and written each second by copies of 64 MiB, the best of five."""
    source = torch.ones(64 * MIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_s(lambda: target.copy_(source), device)


def best_s(work: Callable[[], object], device: torch.device, times: int = 5) -> float:
    """The shortest of several times, after one that does not count."""
    found = []
    for _ in range(times + 1):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def write_bytes_per_s(folder: Path, size: int = 64 * MIB) -> float:
    """Bytes each second of a file that is written and forced to disk, and then deleted. Raises OSError."""
    path, content = folder / f".probe-{os.getpid()}", os.urandom(MIB)
    start = time.perf_counter()
    try:
        with path.open("wb") as file:
            for _ in range(size // MIB):
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return size / (time.perf_counter() - start)
    finally:
        path.unlink(missing_ok=True)


def _gpus() -> Row:
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            advice = "torch does not see the GPUs of nvidia-smi: install a torch for this driver's CUDA"
            return Row("GPUs", "none that torch can use", "bad", advice)
        return Row("GPUs", "none", "look", "training runs on the CPU, which is for trying things out")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    said = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    peers = all(torch.cuda.can_device_access_peer(a, b) for a in range(len(names)) for b in range(len(names)) if a != b)
    found = f"{len(names)} x {names[0]}, driver {said[0] if said else 'unknown'}"
    if not peers:
        return Row("GPUs", found, "look", "they reach each other through the host only; expect slow ZeRO-3 and FSDP2")
    return Row("GPUs", found)


def _nccl() -> Row:
    if not torch.cuda.is_available():
        return Row("NCCL", "not used without GPUs; the ranks talk over Gloo")
    return Row("NCCL", ".".join(str(part) for part in torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


def _all_reduce(device: torch.device) -> Row:
    world = launched_world()
    if world == 1:
        return Row("all-reduce", "one rank; start doctor with the launcher of the run to measure it")
    ranks.join()
    tensor = torch.ones(16 * MIB, dtype=torch.float32, device=device)
    seconds = best_s(lambda: dist.all_reduce(tensor), device)
    rate = 2 * (world - 1) / world * tensor.nbytes / seconds  # what a ring moves through each rank
    return Row("all-reduce", f"{rate / 1e9:.2f} GB/s between {world} ranks")


def _shared_memory() -> Row:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Row("shared memory", "none", "look", "NCCL and data loaders use /dev/shm; mount one")
    size = shutil.disk_usage(folder).total
    found = f"{size / 2**30:.1f} GiB"
    if size < SHM_BYTES:
        return Row("shared memory", found, "bad", "NCCL needs more: docker run --shm-size=8g, or a larger /dev/shm")
    return Row("shared memory", found)


def _disk(folder: Path) -> Row:
    there = next(path for path in (folder, *folder.resolve().parents) if path.is_dir())
    try:
        rate, free = write_bytes_per_s(there), shutil.disk_usage(there).free
    except OSError as error:
        advice = "mend its permissions, or choose another run.dir"
        return Row("disk", f"{there} cannot be written: {error.strerror}", "bad", advice)
    found = f"{rate / 1e6:,.0f} MB/s written and synced, {free / 1e9:,.0f} GB free at {there}"
    if rate < SLOW_DISK_BYTES_PER_S:
        return Row("disk", found, "look", "checkpoints take long here; save less often, or choose another run.dir")
    return Row("disk", found)


def _clock() -> Row:
    """Ranks on several machines should have one time, since a job's end is told in it."""
    skew = max(now := ranks.gather(time.time())) - min(now)
    found = f"{skew:.2f} s between the ranks" if launched_world() > 1 else "one rank, nothing to compare"
    if skew > CLOCK_SKEW_S:
        return Row("clocks", found, "bad", "start a time service (chrony, ntp) on all machines")
    return Row("clocks", found)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""

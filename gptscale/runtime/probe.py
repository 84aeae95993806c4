"""What this machine has and how fast it is, one row for each thing that a run can trip over."""

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from gptscale.runtime import ranks
from gptscale.runtime.device import computes_bf16, local_device, matmul_flops, peak_flops, synchronize
from gptscale.runtime.gpu_probe import gpu_rows
from gptscale.runtime.launch import launched_world
from gptscale.runtime.rows import Row

MIB = 2**20
SHM_BYTES = 2**30
SLOW_DISK_BYTES_PER_S = 100e6
LITTLE_ROOM_BYTES = 40e9
"""Two checkpoints of gpt2-1558m at 12 bytes for each parameter, since the old one goes after the new one is there."""
CLOCK_SKEW_S = 2.0


def machine_rows(folder: Path) -> Iterator[Row]:
    """All rows of this machine; folder is where a run would be kept. All ranks of a launch call this together."""
    device = local_device()
    yield Row("Python", platform.python_version())
    yield Row("torch", torch.__version__)
    yield from gpu_rows()
    yield _matrix_product(device)
    yield Row("memory", f"{copy_bytes_per_s(device) / 1e9:.1f} GB/s copied")
    yield _all_reduce(device)
    yield _shared_memory()
    yield _disk(folder)
    yield _clock(folder)


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


def _matrix_product(device: torch.device) -> Row:
    found = f"{matmul_flops(device, torch.float32) / 1e12:.2f} TFLOP/s in fp32"
    half = "bf16" if computes_bf16(device) else "fp16"
    if device.type == "cpu" and half != "bf16":
        advice = "set train.precision=fp32 here; bf16 takes hundreds of times as long"
        return Row("matrix product", f"{found}, no bf16 in hardware", "look", advice)
    dtype = torch.bfloat16 if half == "bf16" else torch.float16
    rate = matmul_flops(device, dtype)
    found += f", {rate / 1e12:.3g} in {half}"
    if device.type == "cuda" and rate < (peak := peak_flops(device, dtype)) / 2:
        advice = (
            f"the data sheet says {peak / 1e12:.0f}; see by nvidia-smi -q whether it is hot, capped or in other hands"
        )
        return Row("matrix product", found, "look", advice)
    return Row("matrix product", found)


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
        advice = "NCCL needs more: docker run --shm-size=8g, or a larger /dev/shm"
        return Row("shared memory", found, "bad" if torch.cuda.is_available() else "look", advice)
    return Row("shared memory", found)


def _disk(folder: Path) -> Row:
    there = _existing(folder)
    if not there.is_dir():
        return Row("disk", f"{there} is a file", "bad", "choose a folder as run.dir, or move the file")
    try:
        rate, free = write_bytes_per_s(there), shutil.disk_usage(there).free
    except OSError as error:
        advice = "free space, mend its permissions, or choose another run.dir"
        return Row("disk", f"{there} cannot be written: {error.strerror}", "bad", advice)
    found = f"{rate / 1e6:,.0f} MB/s written and synced, {free / 1e9:,.0f} GB free at {there}"
    if free < LITTLE_ROOM_BYTES:
        advice = (
            "a checkpoint takes 12 bytes for each parameter, and two at a time; make room, or choose another run.dir"
        )
        return Row("disk", found, "look", advice)
    if rate < SLOW_DISK_BYTES_PER_S:
        return Row("disk", found, "look", "checkpoints take long here; save less often, or choose another run.dir")
    return Row("disk", found)


def _clock(folder: Path) -> Row:
    """Ranks and file server should have one time, since a job's end and a file's age are told in it."""
    ranks.gather(None)  # so that the next line is the same moment on all of them
    clocks = ranks.gather(time.time())
    skew, from_disk = max(clocks) - min(clocks), _skew_of_disk(_existing(folder))
    found = f"{skew:.2f} s between the ranks, " if launched_world() > 1 else ""
    found += "the disk's is not known" if from_disk is None else f"{from_disk:.2f} s from the disk's"
    if max(skew, from_disk or 0.0) > CLOCK_SKEW_S:
        return Row("clocks", found, "look", "start a time service (chrony, ntp) on all machines")
    return Row("clocks", found)


def _skew_of_disk(folder: Path) -> float | None:
    """How far this machine's clock is from the one that a file's time comes from, which may be a server's."""
    path = folder / f".probe-{os.getpid()}"
    try:
        before = time.time()
        path.touch()
        after, there = time.time(), path.stat().st_mtime
        path.unlink()
    except OSError:
        return None
    return max(before - there, there - after, 0.0)


def _existing(folder: Path) -> Path:
    """The folder, or what may be seen of the way to it, which can end at a file."""
    return next(path for path in (folder, *folder.resolve().parents) if os.path.exists(path))

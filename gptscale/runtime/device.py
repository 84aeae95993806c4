"""What a device can do."""

import ctypes
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from gptscale.runtime.gpus import gpu_of_product
from gptscale.runtime.launch import launched_local_rank, says_yes


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The FLOP/s that model FLOP/s utilisation (MFU) is measured against.

    The data sheet's figure where the device is known and computes in 16 bits; else the rate of a
    large matrix product, timed now, which is the most this device gives in practice.
    """
    if device.type == "cuda" and dtype != torch.float32:
        gpu = gpu_of_product(torch.cuda.get_device_name(device))
        if gpu is not None:
            return gpu.half_flops
    return matmul_flops(device, dtype)


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The FLOP/s of a large matrix product, the best of those that fit into a second, or on a CPU a quarter of it.

    A GPU needs the longer time to raise its clock.
    """
    size, seconds = (1024, 0.25) if device.type == "cpu" else (4096, 1.0)
    if dtype == torch.bfloat16 and not computes_bf16(device):
        size //= 4  # emulated, it takes hundreds of times as long
    a = torch.ones(size, size, device=device, dtype=dtype)
    best_s = float("inf")
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        synchronize(device)
        start = time.perf_counter()
        a @ a
        synchronize(device)
        best_s = min(best_s, time.perf_counter() - start)
    return 2 * size**3 / best_s


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies matrices of bf16 in hardware, or about as fast as those of fp32.

    CPUs below AVX-512 do not: a product takes hundreds of times as long as in fp32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        has_mkldnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return bool(has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def describe_device(device: torch.device) -> str:
    """A short name for people: the GPU's product name, or the CPU and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    return device.type


def local_device() -> torch.device:
    """The device of this rank among those of its machine: CUDA, else MPS, else the CPU."""
    if says_yes("ACCELERATE_USE_CPU"):
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", launched_local_rank())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


_STATUS = Path("/proc/self/status")
_HIGH_WATER_MARK = re.compile(r"VmHWM:\s+(\d+) kB")
"""Of proc(5). getrusage(2) may count there what the process held that started this one."""


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this process held: tensors on CUDA since the last call, else all of the process so far."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    if mark := _HIGH_WATER_MARK.search(_STATUS.read_text() if _STATUS.exists() else ""):
        return int(mark[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_bytes(device: torch.device) -> int:
    """Memory that nobody uses: the device's, or this rank's share of the machine's for a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    available: int = psutil.virtual_memory().available  # with what the system only caches of files
    return available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Of mallopt(3). What glibc begins with is given back below, or what the environment asks for in its place."""


@contextmanager
def keeping_freed_memory(device: torch.device) -> Iterator[None]:
    """Within it, glibc's malloc keeps what a step frees for the next one, if tensors lie there; then gives it back.

    Otherwise every large tensor is new pages, which the system clears one by one as they are first written.
    """
    libc = ctypes.CDLL(None)
    if device.type != "cpu" or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, int(os.environ.get("MALLOC_MMAP_MAX_", "65536")))
        libc.mallopt(_TRIM_THRESHOLD, int(os.environ.get("MALLOC_TRIM_THRESHOLD_", "131072")))
        libc.malloc_trim(0)

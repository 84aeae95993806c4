"""What a device can do."""

import time

import torch

# Dense peak of the matrix units in FLOP/s for bf16 and fp16, from the vendors' data sheets.
PEAK_HALF_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The FLOP/s that model FLOP/s utilisation (MFU) is measured against.

    The data sheet's figure where the device is known and computes in 16 bits; else the rate of a
    large matrix product, timed now (about 0.2 s), which is the most this device gives in practice.
    """
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        for known, flops in PEAK_HALF_FLOPS.items():
            if known in name:
                return flops
    return _measured_matmul_flops(device, dtype)


def _measured_matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    size = 1024 if device.type == "cpu" else 4096
    a = torch.ones(size, size, device=device, dtype=dtype)
    best_s = float("inf")
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        a @ a
        synchronize(device)
        best_s = min(best_s, time.perf_counter() - start)
    return 2 * size**3 / best_s


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


def default_device() -> torch.device:
    """The device for a single process: CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")

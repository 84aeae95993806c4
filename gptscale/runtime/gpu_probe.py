"""Doctor's rows of the GPUs: what torch sees of them, what the driver says, and how they reach each other."""

import re
import shutil
from itertools import permutations

import torch

from gptscale.runtime.rows import Row, output_of

THROUGH_THE_HOST = {"PHB", "NODE", "SYS"}
"""Words of `nvidia-smi topo` for a way between two GPUs that leads through the CPU."""


def gpu_rows() -> list[Row]:
    """CUDA, driver, GPUs, their links, NCCL."""
    return [_cuda(), _driver(), _gpus(), _links(), _nccl()]


def link_kinds(topology: str) -> set[str]:
    """How the GPUs are joined, from the table of `nvidia-smi topo -m`: NV18 for 18 NVLinks, PIX, PHB, SYS and so on."""
    rows = [line.split() for line in topology.splitlines() if re.match(r"GPU\d+\s", line)]
    return {kind for row in rows for kind in row[1 : 1 + len(rows)]} - {"X"}


def _cuda() -> Row:
    if torch.cuda.is_available():
        return Row("CUDA", str(torch.version.cuda))
    driver = shutil.which("nvidia-smi") is not None
    if torch.version.cuda is None and driver:
        return Row(
            "CUDA", "not in this torch", "bad", "install a torch with CUDA, which is what its index gives for Linux"
        )
    if driver:
        advice = "update the driver, or install a torch for the CUDA that nvidia-smi shows"
        return Row("CUDA", f"{torch.version.cuda}, which finds no GPU that it can use", "bad", advice)
    return Row("CUDA", "not used: there is no NVIDIA driver")


def _driver() -> Row:
    said = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split()
    if said:
        return Row("driver", said[0])
    if torch.cuda.is_available():
        return Row("driver", "not told", "look", "nvidia-smi is missing or fails; a container gets it from --gpus all")
    return Row("driver", "none")


def _gpus() -> Row:
    if not torch.cuda.is_available():
        return Row("GPUs", "none", "look", "training runs on the CPU, which is for trying things out")
    names = sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())})
    found = f"{torch.cuda.device_count()} x {' and '.join(names)}"
    if len(names) > 1:
        return Row(
            "GPUs", found, "look", "a step takes as long as the slowest; choose alike ones by CUDA_VISIBLE_DEVICES"
        )
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return Row("GPUs", found, "look", "they have no bf16; set train.precision=fp16")
    return Row("GPUs", found)


def _links() -> Row:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 2:
        return Row("GPU links", "fewer than two GPUs, nothing to join")
    kinds = link_kinds(output_of("nvidia-smi", "topo", "-m"))
    found = ", ".join(sorted(kinds)) or "not told by nvidia-smi"
    peers = all(torch.cuda.can_device_access_peer(a, b) for a, b in permutations(range(count), 2))
    if not peers or kinds & THROUGH_THE_HOST:
        advice = (
            "some reach each other through the host only; expect slow ZeRO-3 and FSDP2, or use GPUs joined by NVLink"
        )
        return Row("GPU links", found, "look", advice)
    return Row("GPU links", found)


def _nccl() -> Row:
    if not torch.cuda.is_available():
        return Row("NCCL", "not used without GPUs; the ranks talk over Gloo")
    return Row("NCCL", ".".join(str(part) for part in torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]

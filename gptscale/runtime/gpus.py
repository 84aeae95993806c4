"""What the vendors' data sheets say about GPUs. Imports no torch."""

import re
from dataclasses import dataclass

from gptscale.config.schema import TrainConfig


@dataclass(frozen=True)
class Gpu:
    """One GPU; rates are dense peaks, without sparsity."""

    name: str
    """What `gptscale plan --gpu` calls it."""
    words: tuple[str, ...]
    """What its product name holds, as torch tells it."""
    half_flops: float
    """FLOP/s of the matrix units in bf16 and fp16."""
    tf32_flops: float
    """FLOP/s of fp32 matrix products that may round their inputs to TF32."""
    fp32_flops: float
    memory_gib: float
    """That programs see, which error correction makes less on some."""
    memory_bytes_per_s: float
    link_bytes_per_s: float
    """To the other GPUs of its machine, one way: half of what data sheets call NVLink's or PCIe's bandwidth."""
    bf16: bool = True
    """Whether its matrix units know bf16 too."""
    beside_bytes_per_s: float | None = None
    """Of activations, moved beside matrix products; null where it was not measured, and is part of what these reach."""

    def computes(self, train: TrainConfig) -> bool:
        """Whether it has the arithmetic of a run."""
        return self.bf16 or not train.precision.startswith("bf16")

    def peak_flops(self, train: TrainConfig) -> float:
        """The peak for the arithmetic of a run."""
        if train.precision != "fp32":
            return self.half_flops
        return self.tf32_flops if train.tf32 else self.fp32_flops


# The first whose words are all in a product name is meant, so the more special stands first. Cards without matrix units
# for TF32 have its column from fp32.
GPUS = (
    Gpu("b200", ("B200",), 2250e12, 1125e12, 75e12, 180, 7700e9, 900e9),
    Gpu("h200-nvl", ("H200", "NVL"), 835e12, 417e12, 60e12, 140, 4800e9, 450e9),
    Gpu("h200", ("H200",), 989e12, 494e12, 67e12, 140, 4800e9, 450e9),
    Gpu("h100-nvl", ("H100", "NVL"), 835e12, 417e12, 60e12, 94, 3900e9, 300e9),
    Gpu("h100-pcie", ("H100", "PCIe"), 756e12, 378e12, 51e12, 80, 2000e9, 64e9),
    Gpu("h100", ("H100",), 989e12, 494e12, 67e12, 80, 3350e9, 450e9),
    Gpu("a100-40", ("A100", "40GB"), 312e12, 156e12, 19.5e12, 40, 1555e9, 300e9),
    Gpu("a100-80", ("A100",), 312e12, 156e12, 19.5e12, 80, 2039e9, 300e9),
    Gpu("l40s", ("L40S",), 362e12, 183e12, 91.6e12, 45, 864e9, 32e9),
    Gpu("l4", ("L4",), 121e12, 60e12, 30.3e12, 22.5, 300e9, 32e9),
    Gpu("a10g", ("A10G",), 70e12, 35e12, 35e12, 22.5, 600e9, 32e9),
    Gpu("rtx4090", ("RTX 4090",), 165e12, 82.6e12, 82.6e12, 24, 1008e9, 32e9),
    Gpu("rtx3090", ("RTX 3090",), 71e12, 35.6e12, 35.6e12, 24, 936e9, 32e9),
    Gpu("v100", ("V100",), 125e12, 15.7e12, 15.7e12, 32, 900e9, 150e9, bf16=False),
    Gpu("t4", ("T4",), 65e12, 8.1e12, 8.1e12, 15, 320e9, 16e9, bf16=False),
)

OTHERS = ("MIG", "Ti", "D", "Laptop")
"""Words of product names that make a part of a card, or another one."""


def gpu_of_product(product: str) -> Gpu | None:
    """The GPU with a product name such as NVIDIA H100 80GB HBM3; None for one that is not in the table, or a part.

    The same card with another memory is not in the table.
    """
    if any(_has_word(product, word) for word in OTHERS):
        return None
    gpu = next((gpu for gpu in GPUS if all(_has_word(product, word) for word in gpu.words)), None)
    said = re.search(r"(?<![A-Za-z0-9])(\d+)GB(?![A-Za-z0-9])", product)
    if gpu and said and not 0.9 <= gpu.memory_gib / int(said[1]) <= 1.1:  # error correction may take a part
        return None
    return gpu


def _has_word(product: str, word: str) -> bool:
    """Whether it stands there as a word of its own: an L40 is no L4."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", product) is not None

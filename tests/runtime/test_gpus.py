import pytest

from gptscale.config.schema import TrainConfig
from gptscale.runtime.gpus import GPUS, gpu_of_product


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L4 24GB", "l4"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("Tesla T4", "t4"),
    ],
)
def test_a_product_name_finds_its_data_sheet(product: str, name: str) -> None:
    gpu = gpu_of_product(product)
    assert gpu is not None
    assert gpu.name == name


@pytest.mark.parametrize("product", ["NVIDIA L40", "NVIDIA RTX A1000", "NVIDIA T400 4GB", "NVIDIA GH200 480GB"])
def test_a_name_within_another_is_not_meant(product: str) -> None:
    assert gpu_of_product(product) is None


@pytest.mark.parametrize(
    "product",
    ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU",
     "NVIDIA GeForce RTX 3090 Ti", "Tesla V100-SXM2-16GB", "NVIDIA A100-SXM-64GB", "NVIDIA H100 64GB HBM2"],
)  # fmt: skip
def test_a_part_of_a_gpu_or_another_with_a_word_more_is_not_meant(product: str) -> None:
    assert gpu_of_product(product) is None


def test_a_gpu_that_is_not_in_the_table_is_none() -> None:
    assert gpu_of_product("AMD Instinct MI300X") is None


def test_the_peak_is_that_of_the_arithmetic_of_a_run() -> None:
    a100 = gpu_of_product("NVIDIA A100-SXM4-80GB")
    assert a100 is not None
    peaks = [a100.peak_flops(TrainConfig(steps=1, precision=p, tf32=tf32)) for p, tf32 in
             [("bf16", False), ("fp16", True), ("fp32", True), ("fp32", False)]]  # fmt: skip
    assert peaks == [312e12, 312e12, 156e12, 19.5e12]


def test_names_are_unique_and_no_column_was_mixed_up() -> None:
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)
    for gpu in GPUS:
        assert gpu.half_flops > gpu.tf32_flops >= gpu.fp32_flops > 1e12
        assert gpu.memory_bytes_per_s > gpu.link_bytes_per_s > 1e9

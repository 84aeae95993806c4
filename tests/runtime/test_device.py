import pytest
import torch

from gptscale.runtime.device import computes_bf16, describe_device, matmul_flops, peak_flops


def test_a_known_gpu_is_measured_against_its_data_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, peak in (
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        peak_flops.cache_clear()
        assert peak_flops(torch.device("cuda"), torch.bfloat16) == peak
    peak_flops.cache_clear()


def test_a_cpu_is_measured_against_its_own_matrix_product() -> None:
    assert 1e9 < peak_flops(torch.device("cpu"), torch.float32) < 1e14
    assert describe_device(torch.device("cpu")).startswith("CPU")


def test_a_device_that_has_bf16_multiplies_it_about_as_fast_as_fp32_and_one_that_has_not_does_not() -> None:
    cpu = torch.device("cpu")
    share = matmul_flops(cpu, torch.bfloat16) / matmul_flops(cpu, torch.float32)
    assert computes_bf16(cpu) == (share > 0.2)  # measured: 0.8 to 2.5 with AVX-512, 0.002 with AVX2

import subprocess
import sys

import pytest
import torch

from gptscale.runtime.device import describe_device, peak_flops


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


FAULTS_OF_A_SECOND_TENSOR = """
import resource, sys
import torch
from gptscale.runtime.device import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    def faults(way: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS_OF_A_SECOND_TENSOR, way], capture_output=True, text=True)
        return int(done.stdout)

    # 64 MiB are 16,384 pages of 4 KiB; larger pages are fewer, and then the machine has none to save
    if faults("give back") < 16_000:
        pytest.skip("this malloc keeps memory by itself")
    assert faults("keep") < 1_000

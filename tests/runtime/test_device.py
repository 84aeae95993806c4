import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil  # type: ignore[import-untyped]
import pytest
import torch

from gptscale.runtime import device
from gptscale.runtime.device import (
    computes_bf16,
    describe_device,
    free_bytes,
    keeping_freed_memory,
    local_device,
    matmul_flops,
    peak_flops,
    peak_memory_bytes,
)


def test_a_known_gpu_is_measured_against_its_data_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, peak in (
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        peak_flops.cache_clear()
        assert peak_flops(torch.device("cuda"), torch.bfloat16) == peak
    monkeypatch.setattr(device, "matmul_flops", lambda *_: 19e12)
    assert peak_flops(torch.device("cuda"), torch.float32) == 19e12  # not the sheet's, which is for 16 bits
    peak_flops.cache_clear()


def test_a_cpu_is_measured_against_its_own_matrix_product() -> None:
    assert 1e9 < peak_flops(torch.device("cpu"), torch.float32) < 1e14
    assert describe_device(torch.device("cpu")).startswith("CPU")


def test_a_matrix_product_counts_a_multiplication_and_an_addition_for_each_term_at_its_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits, now = iter((0.0, 0.1, 0.0, 0.04, 0.0, 0.2)), 0.0  # before and after each product, as on a device of its own

    def wait(device: torch.device) -> None:
        nonlocal now
        now += next(waits)

    monkeypatch.setattr(device, "synchronize", wait)
    monkeypatch.setattr(device, "time", SimpleNamespace(perf_counter=lambda: now))
    # a sum of 1024 products for each of 1024 x 1024 elements
    assert matmul_flops(torch.device("cpu"), torch.float32) == pytest.approx(2 * 1024**3 / 0.04)


def test_each_rank_of_a_machine_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device() == torch.device("cuda", 3)
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setenv("RANK", "2")  # started by hand, on the one machine there is
    assert local_device() == torch.device("cuda", 2)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert local_device() == torch.device("cpu")


def test_a_device_that_has_bf16_multiplies_it_about_as_fast_as_fp32_and_one_that_has_not_does_not() -> None:
    cpu = torch.device("cpu")
    share = matmul_flops(cpu, torch.bfloat16) / matmul_flops(cpu, torch.float32)
    assert computes_bf16(cpu) == (share > 0.2)  # measured: 0.8 to 2.5 with AVX-512, 0.002 with AVX2


def test_a_gpu_that_only_emulates_bf16_has_it_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not computes_bf16(torch.device("cuda"))


def test_the_peak_of_a_gpu_is_that_since_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"now": 3, "peak": 9}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: held["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: held.update(peak=held["now"]))
    assert [peak_memory_bytes(torch.device("cuda")) for _ in range(2)] == [9, 3]


def test_free_on_a_mac_is_what_its_tensors_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 8_000)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 3_000)
    assert free_bytes(torch.device("mps")) == 5_000


def test_memory_that_only_caches_files_is_free_and_ranks_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8_000, free=1_000))
    assert free_bytes(torch.device("cpu")) == 8_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_bytes(torch.device("cpu")) == 2_000


FREED_WITHIN_AND_AFTER = """
from pathlib import Path
import torch
from gptscale.runtime.device import keeping_freed_memory

def held() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS:"))

before = held()
torch.ones(2**26)
outside = held()
with keeping_freed_memory(torch.device("cpu")):
    torch.ones(2**26)
    within = held()
after = held()
torch.ones(2**26)
print(outside - before, within - before, after - before, held() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_kept_only_within() -> None:
    done = subprocess.run([sys.executable, "-c", FREED_WITHIN_AND_AFTER], capture_output=True, text=True, check=True)
    outside, within, after, later = map(int, done.stdout.split())  # MiB of 256 MiB tensors
    assert within > 240
    assert max(outside, after, later) < 30


def test_what_the_environment_says_of_malloc_holds_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[int, int] = {}
    libc = SimpleNamespace(mallopt=lambda *setting: said.update([setting]), malloc_trim=lambda pad: None)
    monkeypatch.setattr("ctypes.CDLL", lambda name: libc)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "4000")
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "5")
    with keeping_freed_memory(torch.device("cpu")):
        assert said == {-1: 2**31 - 1, -4: 0}  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    assert said == {-1: 4000, -4: 5}


def test_memory_of_another_device_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*setting: int) -> None:
        raise AssertionError(f"mallopt{setting}")

    monkeypatch.setattr("ctypes.CDLL", lambda name: type("libc", (), {"mallopt": called}))
    with keeping_freed_memory(torch.device("cuda")):
        pass
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())  # a libc without it
    with keeping_freed_memory(torch.device("cpu")):
        pass


PEAK = """
import torch
from gptscale.runtime.device import peak_memory_bytes
before = peak_memory_bytes(torch.device("cpu"))
held = torch.ones(50_000_000)
print(before, peak_memory_bytes(torch.device("cpu")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_the_most_memory_is_this_process_own_whatever_the_one_held_that_started_it() -> None:
    held = torch.ones(500_000_000)  # 2 GB
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, more = map(int, done.stdout.split())
    assert before < 1.5e9 < held.nbytes
    assert more == pytest.approx(200e6, rel=0.1)

"""gptscale doctor: a row for each thing, a verdict, and what to do."""

import os
import shutil
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor

from gptscale.cli import doctor
from gptscale.runtime import gpu_probe, probe
from gptscale.runtime.rows import Row, told

Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture(autouse=True)
def away_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def test_every_row_is_told_and_the_probe_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    doctor.run_doctor(tmp_path / "not" / "there")
    said = capsys.readouterr().out
    names = {line[6:21].strip() for line in said.splitlines()}
    assert names == {
        *("Python", "torch", "CUDA", "driver", "GPUs", "GPU links", "NCCL", "matrix product", "memory", "all-reduce"),
        *("shared memory", "disk", "clocks", "compiler", "tokenizer", "Hub", "W&B key"),
    }
    lines = [line for line in said.splitlines() if not line.startswith("good")]
    assert all(": " in line[21:] for line in lines), lines  # what is not good says what to do
    assert "very-secret" not in said
    assert "present, in WANDB_API_KEY" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "compiler"), [("cpu", "g++"), ("cuda", "gcc")])
def test_a_machine_without_the_compiler_is_worth_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, compiler: str
) -> None:
    monkeypatch.setattr("gptscale.runtime.device.local_device", lambda: torch.device(kind))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with inductor.patch({"cpp.cxx": (None, str(tmp_path / "g++"))}):
        row = doctor._compiler()
        assert (row.found, row.verdict) == ("none", "look")
        assert "install g++, or name one in CXX (in CC for a GPU)" in row.advice
        (tmp_path / compiler).write_text("#!/bin/sh\n")
        (tmp_path / compiler).chmod(0o755)
        assert doctor._compiler() == Row("compiler", f"{tmp_path / compiler}, for train.compile")
        monkeypatch.setattr("gptscale.runtime.compiled.finds_python_headers", lambda compiler: False)
        row = doctor._compiler()
        assert (row.found, row.verdict) == (f"{tmp_path / compiler}, without the C headers of Python", "look")
        assert "install python3-dev" in row.advice


@pytest.mark.parametrize(("cuda", "verdict"), [(True, "bad"), (False, "look")])
def test_a_small_shared_memory_stops_a_run_on_gpus(monkeypatch: pytest.MonkeyPatch, cuda: bool, verdict: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 * 2**20, 0, 64 * 2**20))
    row = probe._shared_memory()
    assert (row.found, row.verdict) == ("0.1 GiB", verdict)
    assert "--shm-size=8g" in row.advice


def test_a_disk_that_cannot_be_written_stops_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: Path) -> float:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(probe, "write_bytes_per_s", refused)
    with pytest.raises(doctor.typer.Exit) as end:
        doctor.run_doctor(tmp_path)
    assert end.value.exit_code == 2
    assert f"{tmp_path} cannot be written: Permission denied: free space, mend its" in capsys.readouterr().out


def test_a_run_folder_that_is_a_file_stops_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        row = probe._disk(folder)
        assert (row.found, row.verdict) == (f"{tmp_path / 'file'} is a file", "bad")
        assert row.advice == "choose a folder as run.dir, or move the file"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody who may not look")
def test_a_folder_that_may_not_be_looked_into_stops_a_run() -> None:
    with TemporaryDirectory() as private:  # which only its owner may enter
        os.seteuid(65534)
        try:
            row = probe._disk(Path(private) / "run")
        finally:
            os.seteuid(0)
    assert (row.found, row.verdict) == (f"{private} cannot be written: Permission denied", "bad")


def test_a_slow_disk_is_worth_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**12))
    monkeypatch.setattr(probe, "write_bytes_per_s", lambda folder: 50e6)
    row = probe._disk(tmp_path)
    assert row.verdict == "look"
    assert row.found == f"50 MB/s written and synced, 1,000 GB free at {tmp_path}"
    monkeypatch.setattr(probe, "write_bytes_per_s", lambda folder: 500e6)
    assert probe._disk(tmp_path).verdict == "good"


def test_a_disk_without_room_is_worth_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 37 * 10**9))  # 2 x 12 x 1.558e9 bytes
    monkeypatch.setattr(probe, "write_bytes_per_s", lambda folder: 500e6)
    row = probe._disk(tmp_path)
    assert (row.verdict, row.advice[:44]) == ("look", "a checkpoint takes 12 bytes for each paramet")


@pytest.mark.parametrize(("times", "verdict"), [([100.0, 101.0], "good"), ([100.0, 103.0], "look")])
def test_clocks_that_differ_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: list[float], verdict: str
) -> None:
    monkeypatch.setattr(probe.ranks, "gather", lambda value: times)
    assert probe._clock(tmp_path).verdict == verdict


@pytest.mark.parametrize(("ahead_s", "verdict"), [(0.0, "good"), (60.0, "look"), (-60.0, "look")])
def test_a_clock_that_differs_from_the_disks_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float, verdict: str
) -> None:
    now = time.time
    monkeypatch.setattr(probe.time, "time", lambda: now() + ahead_s)
    row = probe._clock(tmp_path / "not-there")
    assert row.verdict == verdict
    assert float(row.found.split()[0]) == pytest.approx(abs(ahead_s), abs=1.0)
    assert list(tmp_path.iterdir()) == []


class Answer(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[int]:
    """The port of a server that has nothing."""
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server.server_port
        server.shutdown()


def test_a_hub_that_answers_is_good(monkeypatch: pytest.MonkeyPatch, web: int) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{web}")
    assert doctor._hub() == Row("Hub", "127.0.0.1 answers")


def test_a_hub_behind_a_proxy_is_reached_through_it(monkeypatch: pytest.MonkeyPatch, web: int) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{web}")
    assert doctor._hub() == Row("Hub", "hub.invalid answers")


@pytest.mark.parametrize(
    ("endpoint", "said"), [("http://user:very-secret@127.0.0.1:9", "127.0.0.1"), ("huggingface.co", "HF_ENDPOINT")]
)
def test_a_hub_that_cannot_be_reached_is_worth_a_look(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, said: str
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    row = doctor._hub()
    assert (row.verdict, row.found) == ("look", f"{said} cannot be reached")
    assert "very-secret" not in repr(row)


def test_what_ranks_judge_otherwise_is_told_with_the_rank() -> None:
    fine, small = Row("shared memory", "8.0 GiB"), Row("shared memory", "0.1 GiB", "bad", "mount more")
    assert list(told([[fine], [small], [Row("shared memory", "9.0 GiB")]])) == [
        "good  shared memory   8.0 GiB (rank 0, 2)",
        "bad   shared memory   0.1 GiB (rank 1): mount more",
    ]
    assert list(told([[fine], [fine]])) == ["good  shared memory   8.0 GiB"]


def test_machines_that_do_not_have_the_same_are_told() -> None:
    assert list(told([[Row("NCCL", "2.27.3")], [Row("NCCL", "2.26.2")]])) == [
        "look  NCCL            2.27.3 (rank 0): install the same on all machines",
        "look  NCCL            2.26.2 (rank 1): install the same on all machines",
    ]


TOPOLOGY = """
\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\t{}\tPIX\t0-95\t0\t\tN/A
GPU1\tNV18\t X \tNV18\tSYS\t0-95\t0\t\tN/A
GPU2\t{}\tNV18\t X \tSYS\t96-191\t1\t\tN/A
NIC0\tPIX\tSYS\tSYS\t X

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
"""


@pytest.mark.parametrize(
    ("far", "peers", "found", "verdict"),
    [
        ("NV18", True, "NV18", "good"),
        ("SYS", True, "NV18, SYS", "look"),
        ("PIX", True, "NV18, PIX", "good"),
        ("PIX", False, "NV18, PIX", "look"),
    ],
)
def test_gpus_that_reach_each_other_through_the_host_are_worth_a_look(
    monkeypatch: pytest.MonkeyPatch, far: str, peers: bool, found: str, verdict: str
) -> None:
    monkeypatch.setattr(gpu_probe, "output_of", lambda *command: TOPOLOGY.format(far, far))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: peers)
    row = gpu_probe._links()
    assert (row.found, row.verdict, bool(row.advice)) == (found, verdict, verdict == "look")


@pytest.mark.parametrize(
    ("built", "driver", "verdict"),
    [(None, False, "good"), (None, True, "bad"), ("12.8", True, "bad"), ("12.8", False, "good")],
)
def test_gpus_that_torch_does_not_see_stop_a_run(
    monkeypatch: pytest.MonkeyPatch, built: str | None, driver: bool, verdict: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if driver else None)
    row = gpu_probe._cuda()
    assert (row.verdict, bool(row.advice)) == (verdict, verdict == "bad")


@pytest.mark.parametrize(
    ("names", "bf16", "verdict", "advice"),
    [
        (["H100", "H100"], True, "good", ""),
        (["H100", "A100"], True, "look", "CUDA_VISIBLE_DEVICES"),
        (["V100", "V100"], False, "look", "train.precision=fp16"),
    ],
)
def test_gpus_of_several_kinds_or_without_bf16_are_worth_a_look(
    monkeypatch: pytest.MonkeyPatch, names: list[str], bf16: bool, verdict: str, advice: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: names[number])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    row = gpu_probe._gpus()
    assert row.verdict == verdict
    assert advice in row.advice


@pytest.mark.parametrize("has_bf16", [True, False])
@pytest.mark.parametrize(("rate", "verdict"), [(700e12, "good"), (400e12, "look")])
def test_a_gpu_far_below_its_data_sheet_is_worth_a_look(
    monkeypatch: pytest.MonkeyPatch, rate: float, verdict: str, has_bf16: bool
) -> None:
    half = torch.bfloat16 if has_bf16 else torch.float16
    monkeypatch.setattr(probe, "computes_bf16", lambda device: has_bf16)
    monkeypatch.setattr(probe, "matmul_flops", lambda device, dtype: {torch.float32: 50e12, half: rate}[dtype])
    monkeypatch.setattr(probe, "peak_flops", lambda device, dtype: 989e12)
    row = probe._matrix_product(torch.device("cuda"))
    assert row.verdict == verdict
    assert row.found == f"50.00 TFLOP/s in fp32, {rate / 1e12:.0f} in {'bf16' if has_bf16 else 'fp16'}"


def test_a_cpu_without_bf16_is_told_to_train_in_fp32_and_its_bf16_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "matmul_flops", lambda device, dtype: {torch.float32: 0.15e12}[dtype])
    monkeypatch.setattr(probe, "computes_bf16", lambda device: False)
    row = probe._matrix_product(torch.device("cpu"))
    assert (row.found, row.verdict) == ("0.15 TFLOP/s in fp32, no bf16 in hardware", "look")
    assert row.advice == "set train.precision=fp32 here; bf16 takes hundreds of times as long"


def test_a_cpu_with_bf16_is_timed_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {torch.float32: 0.15e12, torch.bfloat16: 0.3e12}
    monkeypatch.setattr(probe, "matmul_flops", lambda device, dtype: rates[dtype])
    monkeypatch.setattr(probe, "computes_bf16", lambda device: True)
    row = probe._matrix_product(torch.device("cpu"))
    assert (row.found, row.verdict) == ("0.15 TFLOP/s in fp32, 0.3 in bf16", "good")


def test_a_key_in_netrc_is_found_and_not_shown(tmp_path: Path) -> None:
    assert doctor._wandb_key().verdict == "look"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password very-secret\n")
    row = doctor._wandb_key()
    assert row.found == "present, in the netrc file"
    (tmp_path / "netrc").write_bytes(b"machine api.wandb.ai login user password ge\xe4heim\n")
    assert doctor._wandb_key().verdict == "look"
    assert "very-secret" not in repr(row)


def test_a_copy_is_counted_as_a_read_and_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "best_s", lambda work, device: 2.0)
    assert probe.copy_bytes_per_s(torch.device("cpu")) == 64 * 2**20


def test_what_is_written_is_forced_to_disk_before_the_clock_is_read(
    tmp_path: Path, on_disk: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe.time, "perf_counter", lambda: float(len(on_disk)))  # goes on as files are synced
    assert probe.write_bytes_per_s(tmp_path, size=3 * probe.MIB) == 3 * probe.MIB
    assert on_disk == [f"sync .probe-{os.getpid()}"]
    assert list(tmp_path.iterdir()) == []


def test_the_first_time_does_not_count_and_the_shortest_of_the_rest_does(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 10.0, 15.0, 20.0, 23.0, 30.0, 34.0])  # 1 s to warm up, then 5, 3 and 4
    monkeypatch.setattr(probe.time, "perf_counter", lambda: next(clock))
    assert probe.best_s(lambda: None, torch.device("cpu"), times=3) == 3

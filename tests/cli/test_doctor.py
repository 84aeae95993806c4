"""gptscale doctor: a row for each thing, a verdict, and what to do."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from gptscale.cli import doctor
from gptscale.runtime import probe

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
    assert names >= {"Python", "torch", "GPUs", "NCCL", "matrix product", "memory", "all-reduce", "shared memory"}
    assert names >= {"disk", "clocks", "tokenizer", "Hub", "W&B key"}
    assert "very-secret" not in said
    assert "present, in WANDB_API_KEY" in said
    assert list(tmp_path.iterdir()) == []


def test_a_small_shared_memory_stops_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 * 2**20, 0, 64 * 2**20))
    row = probe._shared_memory()
    assert (row.found, row.verdict) == ("0.1 GiB", "bad")
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
    assert f"{tmp_path} cannot be written: Permission denied: mend its permissions" in capsys.readouterr().out


def test_a_slow_disk_is_worth_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "write_bytes_per_s", lambda folder: 50e6)
    row = probe._disk(tmp_path)
    assert row.verdict == "look"
    assert row.found.startswith("50 MB/s written and synced")


@pytest.mark.parametrize(("times", "verdict"), [([100.0, 101.0], "good"), ([100.0, 103.0], "bad")])
def test_clocks_that_differ_are_found(monkeypatch: pytest.MonkeyPatch, times: list[float], verdict: str) -> None:
    monkeypatch.setattr(probe.ranks, "gather", lambda value: times)
    assert probe._clock().verdict == verdict


def test_a_hub_that_cannot_be_reached_is_worth_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    row = doctor._hub()
    assert (row.verdict, row.found) == ("look", "127.0.0.1 cannot be reached")


def test_a_key_in_netrc_is_found_and_not_shown(tmp_path: Path) -> None:
    assert doctor._wandb_key().verdict == "look"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password very-secret\n")
    row = doctor._wandb_key()
    assert row.found == "present, in the netrc file"
    assert "very-secret" not in repr(row)


def test_a_copy_is_counted_as_a_read_and_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "best_s", lambda work, device: 2.0)
    assert probe.copy_bytes_per_s(torch.device("cpu")) == 64 * 2**20

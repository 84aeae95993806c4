"""What W&B has on disk of a run that was killed and resumed twice."""

import json
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptscale.checkpoint.layout import list_checkpoints
from gptscale.config.load import dump_config
from gptscale.tracking.jsonl import read_histograms, read_log
from tests.e2e.test_resume import in_folder, train_until

pytestmark = pytest.mark.e2e

BLOCK = 2**15


def messages(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format behind seven bytes of W&B's own."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, message = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # no room for a header: the rest of the block is padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield message
            message = b""


def read_back(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Config and history, parsed with W&B's own message types."""
    from wandb.proto.wandb_internal_pb2 import Record

    config: dict[str, Any] = {}
    rows = []
    for message in messages(path):
        record = Record.FromString(message)
        if record.HasField("run"):
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            items = record.history.item
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            rows.append({"_step": record.history.step.num, **row})
    return config, rows


def merged_log(run_dir: Path) -> list[dict[str, Any]]:
    """log.jsonl with the records of a step in one row."""
    rows: dict[int, dict[str, Any]] = {}
    for record in read_log(run_dir / "log.jsonl"):
        rows.setdefault(int(record["step"]), {}).update(record)
    return [rows[step] for step in sorted(rows)]


@pytest.mark.filterwarnings("ignore")
def test_a_run_killed_and_resumed_twice_has_one_wandb_history_equal_to_the_log(
    tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    values["wandb"] = {"mode": "offline", "project": "p", "group": "g", "notes": "n", "tags": ["t"]}
    values["train"]["histograms_every_steps"] = 7
    cfg = in_folder(values, tmp_path / "run", steps=40)
    assert train_until(cfg, 17, signal.SIGKILL).returncode == -signal.SIGKILL
    assert train_until(cfg, 28, signal.SIGKILL).returncode == -signal.SIGKILL
    saved = [int(path.name.removeprefix("step-")) for path in list_checkpoints(cfg.run.dir)]
    assert train_until(cfg, 1000, signal.SIGKILL).returncode == 0

    (path,) = (cfg.run.dir / "wandb").rglob("*.wandb")
    config, rows = read_back(path)
    assert config["train"]["steps"] == 40
    assert config["facts"]["tokens"] == 40 * 256
    assert config["provenance"]["from_step"] == max(saved, default=0)  # 20, or less where the disk was behind
    assert [row["_step"] for row in rows] == list(range(41))
    log = merged_log(cfg.run.dir)
    assert len(log) == 41
    for row, record in zip(rows, log, strict=True):
        told = {key: value for key, value in row.items() if not key.startswith(("_", "samples", "parameters/", "grad"))}
        assert told == record
    assert {row["step"] for row in rows if any(key.startswith("samples") for key in row)} == {0, 10, 20, 30, 40}
    kept = list(read_histograms(cfg.run.dir / "histograms.jsonl"))
    assert [progress["step"] for progress, _ in kept] == [7, 14, 21, 28, 35]
    for progress, found in kept:
        row = rows[int(progress["step"])]
        assert {key.removesuffix("/values") for key in row if key.endswith("/values")} == set(found)
        assert all(row[f"{name}/values"] == histogram.counts for name, histogram in found.items())
        assert all(row[f"{name}/bins"] == histogram.edges for name, histogram in found.items())


def test_what_a_start_had_not_told_at_its_very_end_the_next_one_tells(tmp_path: Path, values: dict[str, Any]) -> None:
    values["wandb"] = {"mode": "offline", "project": "p"}
    cfg = in_folder(values, tmp_path / "run", steps=4)
    assert train_until(cfg, 1000, signal.SIGKILL).returncode == 0
    for path in (cfg.run.dir / "wandb").glob("offline-run-*"):  # as if it had lagged behind to the end
        shutil.rmtree(path)
    (cfg.run.dir / "done").unlink()  # and the node had gone before the run was marked
    assert train_until(cfg, 1000, signal.SIGKILL).returncode == 0
    assert (cfg.run.dir / "done").read_text() == "4\n"
    (path,) = (cfg.run.dir / "wandb").rglob("*.wandb")
    assert [row["_step"] for row in read_back(path)[1]] == list(range(5))
    before = path.stat().st_mtime_ns
    assert train_until(cfg, 1000, signal.SIGKILL).returncode == 0
    assert [found.stat().st_mtime_ns for found in (cfg.run.dir / "wandb").rglob("*.wandb")] == [before]


TAKEN_OVER = """
import sys
import time
from pathlib import Path
from gptscale.checkpoint.fence import Fence
from gptscale.cli.main import main
from gptscale.training import loop

step, calls, run_dir = loop.train_step, 0, Path(sys.argv.pop())

def overtaken(*args, **options):
    global calls
    calls += 1
    if calls == 3:
        while not any(run_dir.rglob("*.wandb")):
            time.sleep(0.1)
        Fence.take(run_dir)
    return step(*args, **options)

loop.train_step = overtaken
main()
"""
"""Trains until another start takes the run over."""


def test_a_start_that_was_taken_over_does_not_end_the_run_in_wandb(tmp_path: Path, values: dict[str, Any]) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    values["wandb"] = {"mode": "offline", "project": "p"}
    cfg = in_folder(values, tmp_path / "run", steps=4000)
    (tmp_path / "config.yaml").write_text(dump_config(cfg))
    command = [sys.executable, "-c", TAKEN_OVER, "train", str(tmp_path / "config.yaml"), str(cfg.run.dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, "was taken over by a later start" in done.stderr) == (2, True), done.stderr
    (path,) = (cfg.run.dir / "wandb").rglob("*.wandb")
    assert not any(Record.FromString(message).HasField("exit") for message in messages(path))

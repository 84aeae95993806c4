"""Whole checkpoints or none; the newest good one wins."""

import errno
import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from gptscale.checkpoint.layout import MANIFEST, list_checkpoints, read_manifest
from gptscale.checkpoint.store import Store
from gptscale.errors import CheckpointError
from gptscale.runtime.fragments import Fragment


@dataclass
class Alone:
    """The ranks of a single process."""

    name: str = "none"
    rank: int = 0
    world: int = 1

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def agree(self, work: Callable[[], Any]) -> Any:
        return work()


def fragments(value: float) -> list[Fragment]:
    tensors = {kind: torch.full((6,), value + i) for i, kind in enumerate(("weight", "exp_avg"))}
    return [Fragment("layer.weight", (2, 3), 0, tensors, {"step": torch.tensor(value)})]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> Store:
    return Store(tmp_path, Alone(), 2, {"data": {"dir": "corpus"}}, "f" * 64, said.append)


def save(store: Store, *steps: int) -> None:
    for step in steps:
        store.save(step, {"step": step}, fragments(float(step)))


def part_of(path: Path) -> Path:
    return path / "part-00000-of-00001.safetensors"


def test_what_was_saved_is_loaded(store: Store) -> None:
    save(store, 3)
    path, manifest = store.newest() or pytest.fail("nothing found")
    empty = fragments(0.0)
    store.load(path, manifest, empty, ["layer.weight"])
    assert manifest.ledger == {"step": 3}
    assert empty[0].tensors["weight"].tolist() == [3.0] * 6
    assert empty[0].tensors["exp_avg"].tolist() == [4.0] * 6
    assert float(empty[0].scalars["step"]) == 3.0


def test_only_the_newest_are_kept(store: Store) -> None:
    save(store, 1, 2, 10)
    assert [p.name for p in list_checkpoints(store.run_dir)] == ["step-00000010", "step-00000002"]
    assert sorted(p.name for p in (store.run_dir / "checkpoints").iterdir()) == ["step-00000002", "step-00000010"]


def test_no_checkpoint_is_no_error(store: Store) -> None:
    assert store.newest() is None


def flip_bit(path: Path) -> None:
    data = bytearray(part_of(path).read_bytes())
    data[-5] ^= 1
    part_of(path).write_bytes(data)


def cut_short(path: Path) -> None:
    part_of(path).write_bytes(part_of(path).read_bytes()[:-4])


def edit_manifest(path: Path) -> None:
    body = json.loads((path / MANIFEST).read_text())
    body["step"] = 7
    (path / MANIFEST).write_text(json.dumps(body))


DAMAGE = [
    (flip_bit, "part-00000-of-00001.safetensors is damaged: its SHA-256 is not the one in manifest.json"),
    (cut_short, r"has \d+ bytes instead of \d+: it was cut short or changed"),
    (lambda path: part_of(path).unlink(), "part-00000-of-00001.safetensors is missing; restore it from a copy"),
    (edit_manifest, "manifest.json was changed after it was written"),
    (lambda path: (path / MANIFEST).unlink(), "step-00000002 is no checkpoint: it has no manifest.json"),
    (lambda path: (path / MANIFEST).write_text("{"), "manifest.json cannot be read; restore it"),
    (
        lambda path: (path / MANIFEST).write_text('{"format": "x", "digest": 1}'),
        r"is no checkpoint of format 'gptscale-checkpoint-1' \(found 'x'\)",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_loudly(
    store: Store, said: list[str], damage: Callable[[Path], None], message: str
) -> None:
    save(store, 1, 2)
    damage(store.run_dir / "checkpoints" / "step-00000002")
    path, _ = store.newest() or pytest.fail("nothing found")
    assert path.name == "step-00000001"
    assert len(said) == 1
    assert re.search(f"WARNING: passing over a bad checkpoint, now .*bad-step-00000002: .*{message}", said[0])


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_without_a_good_checkpoint_a_run_does_not_start_from_nothing(
    store: Store, damage: Callable[[Path], None], message: str
) -> None:
    save(store, 2)
    damage(store.run_dir / "checkpoints" / "step-00000002")
    with pytest.raises(
        CheckpointError, match=f"no checkpoint of .* can be used: .*{message}.* move .*checkpoints away"
    ):
        store.newest()


def test_a_bad_checkpoint_of_the_same_step_is_written_anew(store: Store) -> None:
    save(store, 2)
    flip_bit(store.run_dir / "checkpoints" / "step-00000002")
    save(store, 2)
    assert store.newest() is not None


def test_bad_newer_checkpoints_never_push_out_good_ones(store: Store) -> None:
    save(replace(store, keep=None), 60, 80, 100)
    for step in (80, 100):
        flip_bit(store.run_dir / "checkpoints" / f"step-{step:08d}")
    store.newest()
    save(store, 61, 62, 63)
    assert [p.name for p in list_checkpoints(store.run_dir)] == ["step-00000063", "step-00000062"]
    assert (store.run_dir / "checkpoints" / "bad-step-00000100").is_dir()


def test_a_good_checkpoint_of_the_same_step_is_kept(store: Store) -> None:
    save(store, 2)
    before = part_of(store.run_dir / "checkpoints" / "step-00000002").stat().st_mtime_ns
    store.save(2, {"step": 2}, fragments(9.0))
    assert part_of(store.run_dir / "checkpoints" / "step-00000002").stat().st_mtime_ns == before


def test_a_full_disk_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 1)

    def full(tensors: Any, path: Path, metadata: object = None) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("gptscale.weights.files.save_file", full)  # as safetensors tells it
    with pytest.raises(CheckpointError, match=r"no room for checkpoint .*step-00000002: .* lower checkpoint.keep"):
        save(store, 2)
    assert [p.name for p in (store.run_dir / "checkpoints").iterdir()] == ["step-00000001"]
    assert store.newest() is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_really_full_loses_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        store = Store(small, Alone(), None, {"data": {"dir": "corpus"}}, "f" * 64, print)
        big = Fragment("w", (2500,), 0, {"weight": torch.zeros(2500)}, {})  # 10 kB each
        for step in range(1, 4):
            store.save(step, {}, [big])
        with pytest.raises(CheckpointError, match="no room for checkpoint"):
            store.save(4, {}, [replace(big, tensors={"weight": torch.zeros(20_000)}, shape=(20_000,))])
        assert len(list((small / "checkpoints").iterdir())) == 3
        assert store.newest() is not None
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_another_write_error_is_told_in_one_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("gptscale.checkpoint.portable.write_tensors", broken)
    with pytest.raises(CheckpointError, match=r"step-00000002 could not be written: .*Input/output error; older"):
        save(store, 2)


def test_a_disk_without_room_is_noticed_before_training(store: Store) -> None:
    with pytest.raises(CheckpointError, match=r"MB free, but a checkpoint needs 12,000,000,000 MB; free some space"):
        store.check_room(10**15)


def test_an_interrupted_write_is_no_checkpoint(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 1)

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gptscale.checkpoint.store.write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            save(store, 2)
    assert [p.name for p in list_checkpoints(store.run_dir)] == ["step-00000001"]
    save(store, 2)  # what lies about does not disturb the next one
    assert sorted(p.name for p in (store.run_dir / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]


def test_another_corpus_is_refused(store: Store) -> None:
    save(store, 1)
    other = Store(store.run_dir, Alone(), 2, store.config, "0" * 64, print)
    path, manifest = other.newest() or pytest.fail("nothing found")
    with pytest.raises(CheckpointError, match=r"trained on data ffffffffffff, but data.dir=corpus holds 000000000000"):
        other.load(path, manifest, [], [])


def test_another_model_is_refused(store: Store) -> None:
    save(store, 1)
    path, manifest = store.newest() or pytest.fail("nothing found")
    with pytest.raises(CheckpointError, match=r"layer.weight is only in the checkpoint \(2 such parameters\)"):
        store.load(path, manifest, [], ["other.weight"])
    wider = Fragment("layer.weight", (3, 3), 0, {"weight": torch.zeros(9)}, {})
    with pytest.raises(CheckpointError, match=r"layer.weight has shape \[2, 3\] there and \[3, 3\] here"):
        store.load(path, manifest, [wider], ["layer.weight"])
    richer = Fragment("layer.weight", (2, 3), 0, {"momentum": torch.zeros(6), "weight": torch.zeros(6)}, {})
    with pytest.raises(CheckpointError, match=r"the optimizer needs \['momentum'\]"):
        store.load(path, manifest, [richer], ["layer.weight"])


def test_a_manifest_says_where_every_element_is(store: Store) -> None:
    save(store, 4)
    record = read_manifest(store.run_dir / "checkpoints" / "step-00000004").parameters["layer.weight"]
    assert (record.shape, record.kinds, record.scalars) == ([2, 3], ["weight", "exp_avg"], {"step": 4.0})
    assert [(r.start, r.numel, r.file) for r in record.ranges] == [(0, 6, "part-00000-of-00001.safetensors")]

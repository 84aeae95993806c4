"""Whole checkpoints or none; the newest good one wins."""

import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from gptscale.checkpoint import find, layout
from gptscale.checkpoint import store as store_module
from gptscale.checkpoint.fence import Fence
from gptscale.checkpoint.find import load_fragments, newest_good, verified
from gptscale.checkpoint.layout import (
    MANIFEST,
    CheckpointManifest,
    Range,
    list_checkpoints,
    read_manifest,
)
from gptscale.checkpoint.portable import write_part
from gptscale.checkpoint.retention import doomed
from gptscale.checkpoint.store import Saved, Store
from gptscale.config.schema import CheckpointConfig
from gptscale.errors import CheckpointError
from gptscale.runtime.fragments import Fragment, share
from tests.checkpoint.by_hand import write_checkpoint


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


def keeping(newest: int | None, **others: Any) -> CheckpointConfig:
    return CheckpointConfig(keep=newest, **{"keep_best": False, **others})


@pytest.fixture
def said() -> list[str]:
    return []


ABOUT: dict[str, Any] = {"config": {}, "data_fingerprint": "f" * 64, "versions": {"torch": "2"}}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(Fence(tmp_path), Alone(), keeping(2), **ABOUT)) as store:
        yield store


def save(store: Store, *steps: int) -> Saved | None:
    saved = None
    for step in steps:
        store.save(step, {"step": step}, fragments(float(step)))
        saved = store.finish()
    return saved


def newest(store: Store, strict: bool = False) -> tuple[Path, CheckpointManifest]:
    found = newest_good(store.run_dir, Alone(), print, strict=strict)
    return found or pytest.fail("nothing found")


def part_of(path: Path) -> Path:
    return path / "part-00000-of-00001.safetensors"


def test_what_was_saved_is_loaded(store: Store) -> None:
    save(store, 3)
    path, manifest = newest(store)
    empty = fragments(0.0)
    load_fragments(path, manifest, Alone(), empty, ["layer.weight"])
    assert manifest.ledger == {"step": 3}
    assert manifest.versions == {"torch": "2"}
    assert empty[0].tensors["weight"].tolist() == [3.0] * 6
    assert empty[0].tensors["exp_avg"].tolist() == [4.0] * 6
    assert float(empty[0].scalars["step"]) == 3.0


def test_only_the_newest_are_kept(store: Store) -> None:
    save(store, 1, 2, 10)
    assert [p.name for p in list_checkpoints(store.run_dir)] == ["step-00000010", "step-00000002"]
    assert sorted(p.name for p in (store.run_dir / "checkpoints").iterdir()) == ["step-00000002", "step-00000010"]


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1)

    def denied(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(CheckpointError, match=r"/checkpoints cannot be read: Permission denied; mend its permissions"):
        newest_good(store.run_dir, Alone(), print)


def test_a_part_that_cannot_be_read_is_passed_over_loudly(
    store: Store, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1, 2)
    hash_file = layout.fast_hash_file

    def failing(path: Path) -> str:
        if path.parent.name == "step-00000002":
            raise OSError(errno.EIO, "Input/output error")
        return hash_file(path)

    monkeypatch.setattr(layout, "fast_hash_file", failing)
    found = newest_good(store.run_dir, Alone(), said.append)
    assert found is not None
    assert found[1].step == 1
    assert re.search(r"part-00000-of-00001.safetensors cannot be read: Input/output error; mend its perm", said[0])


@pytest.mark.parametrize("code", [errno.EACCES, errno.ESTALE, errno.EMFILE])
def test_a_part_that_cannot_be_reached_may_be_good_and_ends_the_start(
    store: Store, said: list[str], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    save(store, 1, 2)
    hash_file = layout.fast_hash_file

    def failing(path: Path) -> str:
        if path.parent.name == "step-00000002":
            raise OSError(code, os.strerror(code))
        return hash_file(path)

    monkeypatch.setattr(layout, "fast_hash_file", failing)
    with pytest.raises(CheckpointError, match=rf"cannot be read: {os.strerror(code)}; mend its permissions"):
        newest_good(store.run_dir, Alone(), said.append)
    assert said == []
    assert [path.name for path in list_checkpoints(store.run_dir)] == ["step-00000002", "step-00000001"]


def test_a_bad_checkpoint_that_cannot_be_set_aside_ends_all_ranks(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Telling(Alone):
        def agree(self, work: Callable[[], Any]) -> Any:
            try:
                return work()
            except Exception as error:  # which all ranks would raise
                told.append(str(error))
                raise

    def denied(path: Path, target: Path) -> Path:
        raise PermissionError(errno.EACCES, "Permission denied")

    save(store, 1, 2)
    flip_bit(store.run_dir / "checkpoints" / "step-00000002")
    monkeypatch.setattr(Path, "rename", denied)
    with pytest.raises(
        CheckpointError, match=r"damaged.*cannot be renamed to pass it over: Permission denied; move it"
    ):
        newest_good(store.run_dir, Telling(), lambda line: None)
    assert "is damaged" in told[0]
    assert "Permission denied" in told[1]


def test_an_old_checkpoint_that_somebody_deletes_meanwhile_does_not_count_as_a_failure(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1, 2)
    rename = Path.rename

    def gone(path: Path, target: Path) -> Path:
        if path.name == "step-00000001":
            shutil.rmtree(path)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", gone)
    save(store, 3)
    assert [path.name for path in list_checkpoints(store.run_dir)] == ["step-00000003", "step-00000002"]


def test_an_old_checkpoint_whose_folder_cannot_be_renamed_is_deleted_where_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def in_an_image(path: Path, target: Path) -> Path:
        if path.name == "step-00000001":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", in_an_image)
    save(store, 1, 2, 3)
    assert [path.name for path in list_checkpoints(store.run_dir)] == ["step-00000003", "step-00000002"]


def test_an_old_checkpoint_that_cannot_be_deleted_ends_no_run(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def denied(path: Path, *args: Any, **options: Any) -> Path:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    save(store, 1, 2)
    monkeypatch.setattr(Path, "rename", denied)
    monkeypatch.setattr(Path, "unlink", denied)
    monkeypatch.setattr(store_module, "sweep", lambda *args: None)
    store._rules = keeping(1)
    store.prune(None)
    assert "step-00000001 need not stay, but cannot be deleted: " in caplog.text
    assert len(list_checkpoints(store.run_dir)) == 2


def test_a_commit_that_is_interrupted_finds_all_of_its_folder_or_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1)
    emptying, rmtree, write = threading.Event(), shutil.rmtree, store_module.write_manifest

    def slow_write(*args: Any) -> None:
        emptying.wait(10)
        write(*args)

    def slow_rmtree(folder: Path, **options: Any) -> None:
        part_of(folder).unlink()
        emptying.set()
        wait([commit], timeout=10)
        rmtree(folder, **options)

    def interrupted(work: Callable[[], Any]) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "write_manifest", slow_write)
    store.save(2, {"step": 2}, fragments(2.0))
    store.settle()
    commit = store._save.work  # type: ignore[union-attr]
    monkeypatch.setattr(store._ranks, "agree", interrupted)
    monkeypatch.setattr(shutil, "rmtree", slow_rmtree)
    with pytest.raises(KeyboardInterrupt):
        store.settle()
    assert [path.name for path in list_checkpoints(store.run_dir)] == ["step-00000001"]


def test_no_checkpoint_is_no_error(store: Store) -> None:
    assert newest_good(store.run_dir, Alone(), print) is None


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
    (flip_bit, "part-00000-of-00001.safetensors is damaged: its hash is not the one in manifest.json"),
    (cut_short, r"has \d+ bytes instead of \d+: it was cut short or changed"),
    (lambda path: part_of(path).unlink(), "part-00000-of-00001.safetensors is missing; restore it from a copy"),
    (edit_manifest, "manifest.json was changed after it was written"),
    (lambda path: (path / MANIFEST).unlink(), "step-00000002 is no checkpoint: it has no manifest.json"),
    (lambda path: (path / MANIFEST).write_text("{"), "manifest.json cannot be read; restore it"),
    (lambda path: (path / MANIFEST).write_text("[" * 100_000), "manifest.json cannot be read; restore it"),
    (lambda path: (path / MANIFEST).write_text("[]"), r"is no checkpoint \(its format is None\); give a step"),
    (
        lambda path: (path / MANIFEST).write_text('{"format": "x", "digest": 1}'),
        r"is no checkpoint \(its format is 'x'\); give a step-\* folder",
    ),
    (
        lambda path: (path / MANIFEST).write_text('{"format": "gptscale-checkpoint-3"}'),
        r"is a checkpoint of format 3, and this gptscale reads 2; use a newer gptscale",
    ),
    (
        lambda path: (path / MANIFEST).write_text('{"format": "gptscale-checkpoint-1"}'),
        r"is a checkpoint of format 1, and this gptscale reads 2; use the gptscale that wrote it",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_loudly(
    store: Store, said: list[str], damage: Callable[[Path], None], message: str
) -> None:
    save(store, 1, 2)
    damage(store.run_dir / "checkpoints" / "step-00000002")
    path, _ = newest_good(store.run_dir, Alone(), said.append) or pytest.fail("nothing found")
    assert path.name == "step-00000001"
    assert len(said) == 1
    assert re.search(f"WARNING: passing over a bad checkpoint, now .*bad-step-00000002: .*{message}", said[0])


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_strict_resume_refuses_to_pass_over_a_damaged_checkpoint(
    store: Store, damage: Callable[[Path], None], message: str
) -> None:
    save(store, 1, 2)
    damage(store.run_dir / "checkpoints" / "step-00000002")
    with pytest.raises(CheckpointError, match=rf"strict refuses to pass over a bad checkpoint: .*{message}.*strict=fa"):
        newest(store, strict=True)
    assert len(list_checkpoints(store.run_dir)) == 2


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_without_a_good_checkpoint_a_run_does_not_start_from_nothing(
    store: Store, damage: Callable[[Path], None], message: str
) -> None:
    save(store, 2)
    damage(store.run_dir / "checkpoints" / "step-00000002")
    with pytest.raises(
        CheckpointError, match=f"no checkpoint of .* can be used: .*{message}.* move .*checkpoints away"
    ):
        newest(store)


def test_a_bad_checkpoint_of_the_same_step_is_written_anew(store: Store) -> None:
    save(store, 2)
    flip_bit(store.run_dir / "checkpoints" / "step-00000002")
    with closing(Store(Fence(store.run_dir), Alone(), keeping(2), **ABOUT)) as of_a_later_start:
        save(of_a_later_start, 2)
    assert newest(store)[0].name == "step-00000002"


def test_a_stop_right_after_a_save_does_not_read_it_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 2)
    monkeypatch.setattr("gptscale.checkpoint.store.verified", lambda *_: pytest.fail("read again"))
    save(store, 2)


def test_bad_newer_checkpoints_never_push_out_good_ones(store: Store) -> None:
    with closing(Store(Fence(store.run_dir), Alone(), keeping(None), **ABOUT)) as unlimited:
        save(unlimited, 60, 80, 100)
    for step in (80, 100):
        flip_bit(store.run_dir / "checkpoints" / f"step-{step:08d}")
    newest(store)
    save(store, 61, 62, 63)
    assert [p.name for p in list_checkpoints(store.run_dir)] == ["step-00000063", "step-00000062"]
    assert (store.run_dir / "checkpoints" / "bad-step-00000100").is_dir()


def test_a_good_checkpoint_of_the_same_step_is_kept(store: Store) -> None:
    save(store, 2)
    before = part_of(store.run_dir / "checkpoints" / "step-00000002").stat().st_mtime_ns
    store.save(2, {"step": 2}, fragments(9.0))
    assert store.finish() is None
    assert part_of(store.run_dir / "checkpoints" / "step-00000002").stat().st_mtime_ns == before


def test_a_full_disk_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 1)

    def full(path: Path, tensors: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gptscale.checkpoint.portable.write_tensors", full)
    with pytest.raises(CheckpointError, match=r"no room for checkpoint .*step-00000002: .* lower checkpoint.keep"):
        save(store, 2)
    assert [p.name for p in (store.run_dir / "checkpoints").iterdir()] == ["step-00000001"]
    assert newest(store)[0].name == "step-00000001"


def test_a_full_disk_is_said_before_there_is_a_folder_of_checkpoints(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(CheckpointError, match=r"no room for checkpoint .*step-00000001: [\d,]+ MB are free"):
        save(store, 1)
    assert not (store.run_dir / "checkpoints").exists()


def test_a_quota_that_is_used_up_is_no_disk_with_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def used_up(*args: Any) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr("gptscale.checkpoint.portable.write_tensors", used_up)
    with pytest.raises(CheckpointError, match=r"no room for checkpoint .*: .*quota exceeded; free some space"):
        save(store, 1)


def test_the_room_is_that_of_the_disk_that_checkpoints_go_to(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (store.run_dir / "checkpoints").symlink_to(elsewhere)
    usage, asked = shutil.disk_usage, []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path.resolve()) or usage(path))
    store.check_room(1)
    assert asked == [elsewhere]


def test_a_link_to_checkpoints_on_a_disk_that_is_not_there_is_no_new_run(store: Store, tmp_path: Path) -> None:
    (store.run_dir / "checkpoints").symlink_to(tmp_path / "not mounted")
    with pytest.raises(CheckpointError, match=r"checkpoints is a link to .*not mounted, which is not there; mount"):
        newest_good(store.run_dir, Alone(), print)


@pytest.mark.parametrize("link", [False, True])
def test_a_file_in_the_place_of_the_checkpoints_is_told_before_a_run_trains(
    store: Store, tmp_path: Path, link: bool
) -> None:
    folder = store.run_dir / "checkpoints"
    if link:
        folder.symlink_to(tmp_path / "a file")
    folder.write_text("")
    with pytest.raises(CheckpointError, match=r"checkpoints is no folder, so it holds no checkpoints; move it away"):
        newest_good(store.run_dir, Alone(), print)


def test_a_ledger_that_a_full_disk_does_not_take_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 1)
    folder = store.run_dir / "checkpoints" / "step-00000001"
    before = read_manifest(folder)

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gptscale.checkpoint.layout.write_whole", full)
    with pytest.raises(CheckpointError, match=r"no room for checkpoint .*step-00000001: [\d,]+ MB are free"):
        store.amend(folder, rollbacks=1)
    assert read_manifest(folder) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_really_full_loses_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        store = Store(Fence(small), Alone(), keeping(None), **ABOUT)
        big = Fragment("w", (2500,), 0, {"weight": torch.zeros(2500)}, {})  # 10 kB each
        for step in range(1, 4):
            store.save(step, {}, [big])
            store.finish()
        store.save(4, {}, [replace(big, tensors={"weight": torch.zeros(20_000)}, shape=(20_000,))])
        with pytest.raises(CheckpointError, match="no room for checkpoint"):
            store.finish()
        assert len(list((small / "checkpoints").iterdir())) == 3
        assert newest(store)[0].name == "step-00000003"
        store.close()
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")
def test_a_disk_that_became_read_only_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        store = Store(Fence(place), Alone(), keeping(None), **ABOUT)
        save(store, 1)
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        with pytest.raises(
            CheckpointError, match=r"step-00000002 could not be written: .*Read-only file system: .*; older"
        ):
            save(store, 2)
        assert newest(store)[0].name == "step-00000001"
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        save(store, 3)
        assert newest(store)[0].name == "step-00000003"
        store.close()
    finally:
        subprocess.run(["umount", str(place)], check=True)


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


def test_a_renamed_checkpoint_does_not_count_as_the_step_of_its_name(store: Store, said: list[str]) -> None:
    save(store, 1, 2)
    folder = store.run_dir / "checkpoints"
    (folder / "step-00000001").rename(folder / "step-00000009")
    found = newest_good(store.run_dir, Alone(), said.append)
    assert found is not None
    assert found[1].step == 2
    assert re.search(r"now .*bad-step-00000009: .*step-00000009 holds step 1, .*; name it step-00000001 again", said[0])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ledger", ["step"], "ledger: Input should be a valid dictionary"),
        ("step", None, "step: Input should be a valid integer"),
        ("files", {"part": {"bytes": 1}}, "files.part.xxh3: Field required"),
        ("parameters", {"w": {"shape": [2], "kinds": [], "scalars": {}}}, "parameters.w.ranges: Field required"),
        ("parameters", {"w": 2}, "parameters.w: Input should be a dictionary or an instance of ParameterRecord"),
        (
            "parameters",
            {"w": {"shape": [2], "kinds": [], "scalars": {}, "ranges": [{"start": 0, "numel": "all", "file": "a"}]}},
            "parameters.w.ranges.0.numel: Input should be a valid integer",
        ),
    ],
)
def test_a_manifest_of_another_program_with_other_fields_is_refused(
    store: Store, field: str, value: Any, message: str
) -> None:
    save(store, 2)
    path = store.run_dir / "checkpoints" / "step-00000002" / MANIFEST
    body = {**json.loads(path.read_text()), field: value}
    del body["digest"]
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))  # the digest as FORMAT.md describes it
    path.write_text(json.dumps({**body, "digest": sha256(text.encode()).hexdigest()}))
    with pytest.raises(CheckpointError, match=rf"manifest.json is not what format 2 asks for \({message}.*FORMAT.md"):
        read_manifest(path.parent)


def test_another_model_is_refused(store: Store) -> None:
    save(store, 1)
    path, manifest = newest(store)
    with pytest.raises(CheckpointError, match=r"layer.weight is only in the checkpoint \(2 such parameters\)"):
        load_fragments(path, manifest, Alone(), [], ["other.weight"])
    wider = Fragment("layer.weight", (3, 3), 0, {"weight": torch.zeros(9)}, {})
    with pytest.raises(CheckpointError, match=r"layer.weight has shape \[2, 3\] there and \[3, 3\] here"):
        load_fragments(path, manifest, Alone(), [wider], ["layer.weight"])
    richer = Fragment("layer.weight", (2, 3), 0, {"momentum": torch.zeros(6), "weight": torch.zeros(6)}, {})
    with pytest.raises(CheckpointError, match=r"the optimizer needs \['momentum'\]"):
        load_fragments(path, manifest, Alone(), [richer], ["layer.weight"])


def test_a_manifest_says_where_every_element_is(store: Store) -> None:
    save(store, 4)
    record = read_manifest(store.run_dir / "checkpoints" / "step-00000004").parameters["layer.weight"]
    assert (record.shape, record.kinds, record.scalars) == ([2, 3], ["weight", "exp_avg"], {"step": 4.0})
    assert [(r.start, r.numel, r.file) for r in record.ranges] == [(0, 6, "part-00000-of-00001.safetensors")]


def test_training_may_change_the_weights_as_soon_as_a_save_has_begun(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()

    def late(folder: Path, file: str, copies: Any) -> Any:
        may_write.wait(10)
        return write_part(folder, file, copies)

    monkeypatch.setattr("gptscale.checkpoint.store.write_part", late)
    live = fragments(1.0)
    store.save(1, {"step": 1}, live)
    assert store.writing
    live[0].tensors["weight"].fill_(99.0)
    live[0].scalars["step"].fill_(99.0)
    may_write.set()
    saved = store.finish()
    assert saved is not None
    assert not store.writing
    empty = fragments(0.0)
    load_fragments(*newest(store), Alone(), empty, ["layer.weight"])
    assert empty[0].tensors["weight"].tolist() == [1.0] * 6
    assert float(empty[0].scalars["step"]) == 1.0


def test_a_start_that_ends_does_not_wait_for_a_disk_that_hangs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr(store_module, "write_part", lambda *args: answers.wait(10))
    store.save(1, {"step": 1}, fragments(1.0))
    store.close()
    assert store.writing
    answers.set()


def test_a_save_is_there_only_after_both_of_its_stages(store: Store) -> None:
    began = time.perf_counter()
    store.save(1, {"step": 1}, fragments(1.0))
    assert store.settle() is None  # the parts are written, the commit begins
    while store.writing:
        time.sleep(0.01)
    time.sleep(0.2)  # for so long the checkpoint is safe, and training has not looked
    saved = store.settle()
    assert saved is not None
    assert saved.durable_s <= time.perf_counter() - began - 0.2
    assert (saved.step, saved.path.name) == (1, "step-00000001")
    assert saved.bytes == part_of(saved.path).stat().st_size
    assert 0 < saved.stall_s < saved.durable_s
    assert store.settle() is None


def test_a_failed_write_is_told_by_the_next_settle_and_does_not_stop_later_ones(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("gptscale.checkpoint.portable.write_tensors", lambda *args: 1 / 0)
        store.save(1, {}, fragments(1.0))
        with pytest.raises(ZeroDivisionError):
            store.settle()
    assert save(store, 1) is not None


def test_a_checkpoint_without_a_parameter_is_refused_and_names_it(tmp_path: Path) -> None:
    names = ["layer.weight", "layer.bias"]
    with closing(Store(Fence(tmp_path), Alone(), keeping(2), names=names, **ABOUT)) as store:
        with pytest.raises(CheckpointError, match=r"layer.bias was saved by no rank, .* \(1 such names\); nothing was"):
            save(store, 1)
        assert list_checkpoints(tmp_path) == []


def test_milestones_and_the_best_outlive_the_newest(tmp_path: Path) -> None:
    with closing(Store(Fence(tmp_path), Alone(), keeping(1, keep_every_steps=10, keep_best=True), **ABOUT)) as store:
        for step, best in ((4, 4), (8, 4), (10, 4), (15, 15), (16, 15), (18, 15)):
            store.save(step, {"best": {"step": best, "val_loss": 1.0}}, fragments(1.0))
            store.finish()
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000018", "step-00000015", "step-00000010"]


def test_an_older_checkpoint_goes_only_after_the_new_one_has_its_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1, 2)
    seen: list[list[str]] = []
    rmtree = shutil.rmtree

    def note(path: Path, **kwargs: Any) -> None:
        seen.append([p.name for p in list_checkpoints(store.run_dir)])
        rmtree(path, **kwargs)

    monkeypatch.setattr("gptscale.checkpoint.store.shutil.rmtree", note)
    save(store, 3)
    assert seen[0] == ["step-00000003", "step-00000002"]


def test_a_checkpoint_that_is_a_link_goes_as_a_link(store: Store, tmp_path: Path) -> None:
    save(store, 1)
    folder = store.run_dir / "checkpoints"
    (folder / "step-00000001").rename(tmp_path / "elsewhere")
    (folder / "step-00000001").symlink_to(tmp_path / "elsewhere")
    assert newest(store)[1].step == 1
    save(store, 2, 3)  # of which two are kept
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000002", "step-00000003"]
    assert part_of(tmp_path / "elsewhere").is_file()


@pytest.mark.parametrize("background", [True, False])
def test_a_save_without_a_copy_writes_the_live_tensors(tmp_path: Path, background: bool) -> None:
    with closing(Store(Fence(tmp_path), Alone(), keeping(1, background=background), **ABOUT)) as store:
        store.save(1, {"step": 1}, fragments(1.0))
        assert background or not store.writing  # else training could change what is being written
        store.finish()
        empty = fragments(0.0)
        load_fragments(*newest(store), Alone(), empty, ["layer.weight"])
    assert empty[0].tensors["exp_avg"].tolist() == [2.0] * 6


def test_a_checkpoint_gets_its_name_when_all_of_it_is_on_disk_and_the_name_is_kept_too(
    store: Store, on_disk: list[str]
) -> None:
    save(store, 3)
    part, folder = "part-00000-of-00001.safetensors", ".unfinished-step-00000003-000000"
    assert on_disk == [
        f"sync {part}",
        "sync manifest.json~",
        "name manifest.json",
        f"sync {folder}",
        "name step-00000003",
        "sync checkpoints",
    ]


@pytest.mark.parametrize("damaged", [0, 1, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_some_rank_looks_at_every_part(tmp_path: Path, world: int, damaged: int) -> None:
    names = [f"part-{number:05d}-of-00003.safetensors" for number in range(3)]
    tensors = {name: {f"weight/w@{2 * number}": torch.ones(2)} for number, name in enumerate(names)}
    ranges = {"w": [Range(2 * number, 2, name) for number, name in enumerate(names)]}
    folder = write_checkpoint(tmp_path, tensors, ranges, world=3)
    content = (folder / names[damaged]).read_bytes()
    (folder / names[damaged]).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    def found_by(rank: int) -> str:
        try:
            verified(folder, rank, world)
        except CheckpointError as error:
            return str(error)
        return ""

    found = [f"{names[damaged]} is damaged" in found_by(rank) for rank in range(world)]
    assert found == [rank == damaged % world for rank in range(world)]  # the files are dealt out in turn


def test_the_first_ranks_ledger_counts_on_all_ranks(store: Store) -> None:
    save(store, 3)

    class Second(Alone):
        """A rank whose file system still shows a ledger from before the first rank amended it."""

        def gather(self, value: Any) -> list[Any]:
            return [{"step": 3, "rollbacks": 1} if isinstance(value, dict) else value, value]

    found = newest_good(store.run_dir, Second(rank=1, world=2), print)
    assert found is not None
    assert found[1].ledger == {"step": 3, "rollbacks": 1}
    assert found[1].step == 3


class Together(Alone):
    """One of some ranks that are threads of a process."""

    def __init__(self, rank: int, told: list[Any], meeting: threading.Barrier) -> None:
        super().__init__("ddp", rank, len(told))
        self._told, self._meeting = told, meeting

    def gather(self, value: Any) -> list[Any]:
        self._told[self.rank] = value
        self._meeting.wait(20)
        found = list(self._told)
        self._meeting.wait(20)
        return found

    def agree(self, work: Callable[[], Any]) -> Any:
        try:
            result = work()
        except BaseException:
            self._meeting.abort()
            raise
        self.gather(None)
        return result


def test_each_rank_saves_a_part_and_the_checkpoint_has_them_all(tmp_path: Path) -> None:
    told, meeting = [None, None], threading.Barrier(2)

    def saved_by(rank: int) -> Saved | None:
        with closing(Store(Fence(tmp_path), Together(rank, told, meeting), keeping(2), **ABOUT)) as store:
            store.save(3, {"step": 3}, share(fragments(3.0), rank, 2))
            return store.finish()

    with ThreadPoolExecutor(2) as threads:
        saved = list(threads.map(saved_by, range(2)))
    path, manifest = newest_good(tmp_path, Alone(), print) or pytest.fail("nothing found")
    sizes = {part.name: part.stat().st_size for part in path.glob("part-*")}
    assert sorted(sizes) == sorted(manifest.files) == [f"part-0000{rank}-of-00002.safetensors" for rank in range(2)]
    assert [one.bytes for one in saved if one is not None] == [sum(sizes.values())] * 2
    empty = fragments(0.0)
    load_fragments(path, manifest, Alone(), empty, ["layer.weight"])
    assert empty[0].tensors["exp_avg"].tolist() == [4.0] * 6


def test_a_step_that_another_rank_has_seen_is_looked_at_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class First(Alone):
        """A rank whose file system does not show yet what the second one's does."""

        def gather(self, value: Any) -> list[Any]:
            return [value, True]

    looked: list[str] = []
    monkeypatch.setattr(store_module, "verified", lambda path, rank, world: looked.append(path.name))
    with closing(Store(Fence(tmp_path), First(world=2), keeping(2), **ABOUT)) as store:
        assert save(store, 1) is None
    assert looked == ["step-00000001"]  # else the second would wait for the first


def test_the_first_rank_alone_sets_a_bad_checkpoint_aside(store: Store) -> None:
    save(store, 1, 2)
    bad = store.run_dir / "checkpoints" / "step-00000002"
    (bad / MANIFEST).unlink()
    found = newest_good(store.run_dir, Alone(rank=1, world=2), print)
    assert found is not None
    assert found[1].step == 1
    assert bad.is_dir()


def test_a_load_that_fails_on_another_rank_fails_on_this_one(store: Store) -> None:
    class First(Alone):
        def agree(self, work: Callable[[], Any]) -> Any:
            work()
            raise CheckpointError("the second cannot read its ranges")

    save(store, 1)
    with pytest.raises(CheckpointError, match="the second cannot read"):
        load_fragments(*newest(store), First(world=2), fragments(0.0), ["layer.weight"])


def test_what_a_failed_save_of_the_step_has_left_is_no_part_of_it(store: Store) -> None:
    left = store.run_dir / "checkpoints" / ".unfinished-step-00000001-000000"
    left.mkdir(parents=True)
    (left / "part-00001-of-00002.safetensors").write_bytes(b"half")
    save(store, 1)
    assert sorted(path.name for path in newest(store)[0].iterdir()) == [MANIFEST, part_of(left).name]


def test_what_is_kept_is_what_was_asked_for() -> None:
    assert doomed(keeping(1, keep_best=True), [3, 1, 2], best_step=1) == [2]
    assert doomed(keeping(1), [3, 1, 2], best_step=1) == [1, 2]
    assert doomed(keeping(None), [3, 1, 2], best_step=1) == []


def test_the_newest_is_that_of_the_last_step_whatever_its_number_of_digits(tmp_path: Path) -> None:
    names = ["step-100000000", "step-99999999", "step-00000007"]
    for name in names:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in list_checkpoints(tmp_path)] == names


def test_a_checkpoint_may_be_bad_twice(store: Store) -> None:
    save(store, 1)
    for _ in range(2):
        save(store, 2)
        flip_bit(store.run_dir / "checkpoints" / "step-00000002")
        assert newest(store)[1].step == 1
    assert (store.run_dir / "checkpoints" / "bad-step-00000002").is_dir()


def test_the_first_ranks_list_of_checkpoints_counts_on_all_ranks(store: Store) -> None:
    save(store, 1, 2)
    newer, older = list_checkpoints(store.run_dir)

    class Second(Alone):
        """A rank whose file system already shows a checkpoint that the first one's does not."""

        def gather(self, value: Any) -> list[Any]:
            return [[older] if value == [newer, older] else value, value]

    found = newest_good(store.run_dir, Second(rank=1, world=2), print)
    assert found is not None
    assert found[0] == older


def test_a_resume_does_not_go_by_what_a_client_remembers_of_the_folder(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1)
    listdir, remembered = os.listdir, {}

    def recalled(folder: Path) -> list[str]:
        """As on a network's disk: a folder that this client has changed itself is read again."""
        known = remembered.get(folder)
        now = folder.stat().st_mtime_ns
        if known is None or known[0] != now:
            remembered[folder] = (now, listdir(folder))
        return remembered[folder][1]

    looked: list[Path] = []
    refresh = find.refresh
    monkeypatch.setattr(find, "refresh", lambda folder: looked.append(folder) or refresh(folder))
    assert newest_good(store.run_dir, Alone(), print) is not None
    assert looked == [store.run_dir / "checkpoints"]


def test_what_a_rank_tells_the_others_of_its_part_is_small_for_any_number_of_parameters(tmp_path: Path) -> None:
    state = {kind: torch.zeros(2) for kind in ("weight", "exp_avg", "exp_avg_sq")}
    many = [Fragment(f"blocks.{n}.weight", (2,), 0, state, {"step": torch.tensor(1.0)}) for n in range(580)]
    told: list[Any] = []

    class Telling(Alone):
        def gather(self, value: Any) -> list[Any]:
            told.append(value)
            return [value]

    with closing(Store(Fence(tmp_path), Telling(), keeping(2), **ABOUT)) as store:
        store.save(1, {"step": 1}, many)
        store.finish()
    # 580 records of some 100 bytes each, from every rank to every rank, took a thousand of them seconds to unpickle
    assert max(len(pickle.dumps(value)) for value in told) < 10_000
    _, manifest = newest_good(tmp_path, Alone(), print) or pytest.fail("nothing found")
    assert list(manifest.parameters) == [fragment.name for fragment in many]

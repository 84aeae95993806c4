"""Files are whole or absent."""

import errno
import hashlib
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptscale.data.files import remove_leftovers, write_whole
from gptscale.disk import hash_file, temporary_path, this_host
from gptscale.errors import DataError


def fail_with(code: int) -> object:
    def fsync(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    return fsync


def test_pieces_follow_each_other_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"one ", memoryview(b"two"))
    assert (tmp_path / "a").read_bytes() == b"one two"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_gets_its_name_when_it_is_on_disk_and_the_name_is_kept_too(tmp_path: Path, on_disk: list[str]) -> None:
    write_whole(tmp_path / "a", b"one")
    assert on_disk == ["sync a~", "name a", f"sync {tmp_path.name}"]


def test_what_another_machine_took_away_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: [path.unlink() for path in tmp_path.glob(".*.tmp")])
    with pytest.raises(DataError, match=r"a was taken away while it was written, data.dir=.*; run prepare again"):
        write_whole(tmp_path / "a", b"one")


def test_hash_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_the_old_file_and_names_data_dir(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail_with(code))
    with pytest.raises(DataError, match=rf"no space left to write a, data.dir={tmp_path}; free some space"):
        write_whole(tmp_path / "a", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


@pytest.mark.parametrize(
    ("code", "words"), [(errno.EROFS, "Read-only file system"), (errno.EACCES, "Permission denied")]
)
def test_a_folder_that_may_not_be_written_is_named(
    code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", fail_with(code))
    with pytest.raises(
        DataError, match=rf"^a cannot be written, data.dir={tmp_path}: {words}; choose another data.dir$"
    ):
        write_whole(tmp_path / "a", b"new")


def test_a_file_beyond_a_limit_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fail_with(errno.EFBIG))
    with pytest.raises(DataError, match=rf"^a is larger than a file may be, data.dir={tmp_path}; raise the limit"):
        write_whole(tmp_path / "a", b"new")


def test_other_failures_of_the_disk_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fail_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        write_whole(tmp_path / "a", b"new")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    # a process number beyond Linux' largest (2**22) is nobody's; the parent lives
    host = this_host()
    gone = [f".train-00000.bin.{host}.99999999.00ff00ff.tmp", f".manifest.json.{host}.{os.getpid()}.00000000.tmp"]
    stay = [
        f".train-00000.bin.{host}.{os.getppid()}.00ff00ff.tmp",
        f".train-00000.bin.another-{host}.99999999.00ff00ff.tmp",
        ".train-00000.bin.tmp",
        "train.1.tmp",
    ]
    for name in [*gone, *stay]:
        (tmp_path / name).write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)


def test_somebody_elses_process_lives_too(tmp_path: Path) -> None:
    (tmp_path / f".a.{this_host()}.1.00ff00ff.tmp").write_bytes(b"half")  # the first process is root's
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_another_machine_has_not_touched_for_a_day_is_a_leftover(tmp_path: Path) -> None:
    for name, hours in [("old", 25), ("new", 23)]:
        path = tmp_path / f".{name}.another-{this_host()}.12.00ff00ff.tmp"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - hours * 3600,) * 2)
    remove_leftovers(tmp_path)
    assert [path.name[:4] for path in tmp_path.iterdir()] == [".new"]


def test_in_a_finished_corpus_all_of_another_machines_is_left_over(tmp_path: Path) -> None:
    other, living = f"another-{this_host()}", f".new.{this_host()}.{os.getppid()}.00ff00ff.tmp"
    for name in (f".new.{other}.12.00ff00ff.tmp", living, "train-00000.bin"):
        (tmp_path / name).write_bytes(b"half")
    remove_leftovers(tmp_path, finished=True)
    assert {path.name for path in tmp_path.iterdir()} == {living, "train-00000.bin"}


def test_a_containers_processes_are_not_this_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside, stat = this_host(), os.stat
    written = temporary_path(tmp_path / "a")
    written.write_bytes(b"half")

    def in_a_container(path: Any, **rest: Any) -> Any:
        return SimpleNamespace(st_ino=4026532999) if path == "/proc/self/ns/pid" else stat(path, **rest)

    monkeypatch.setattr(os, "stat", in_a_container)
    assert this_host() == f"{outside}-4026532999"
    monkeypatch.setattr(os, "getpid", lambda: 1)  # so the number alone would say that the writer is gone
    monkeypatch.setattr(os, "kill", fail_with(errno.ESRCH))
    remove_leftovers(tmp_path)
    assert written.exists()

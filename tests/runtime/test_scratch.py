"""Folders of processes on a disk, of which some are killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gptscale.runtime.scratch import MARK, Scratch

HOLD = 'import sys, pathlib, gptscale.runtime.scratch as s; f = s.Scratch(pathlib.Path(sys.argv[1]), "swap-")'


def holding(disk: Path) -> "subprocess.Popen[str]":
    """Another process with a folder there that has a file in it, until it is killed."""
    code = f"{HOLD}; (f.path / 'moments').write_text('x'); print(f.path, flush=True); sys.stdin.read()"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_folder_is_gone_when_it_is_closed(tmp_path: Path) -> None:
    first, second = Scratch(tmp_path, "swap-"), Scratch(tmp_path, "swap-")
    (first.path / "moments").write_text("x")
    assert sorted(tmp_path.iterdir()) == sorted([first.path, second.path])
    first.close()
    assert [*tmp_path.iterdir()] == [second.path]
    second.close()
    assert [*tmp_path.iterdir()] == []


def test_what_a_killed_process_left_goes_and_what_a_live_one_has_stays(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("swap-main", "swap-12345678", "swap-more-12345678")]
    for other in others:
        (other / "runs").mkdir(parents=True)
    (tmp_path / "swap-more-12345678" / MARK).touch()  # of another prefix
    with holding(tmp_path) as live, holding(tmp_path) as dead:
        assert live.stdout is not None
        assert dead.stdout is not None
        left, kept = Path(dead.stdout.readline().strip()), Path(live.stdout.readline().strip())
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert (left / "moments").exists()
        mine = Scratch(tmp_path, "swap-")
        assert sorted(tmp_path.iterdir()) == sorted([kept, mine.path, *others])
        assert (kept / "moments").exists()
        live.kill()
    mine.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_disk_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Permission denied"):
        Scratch(tmp_path, "swap-")


def test_a_disk_without_locks_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object) -> None:
        raise OSError("No locks available")

    monkeypatch.setattr("gptscale.runtime.scratch.fcntl.flock", refused)
    first = Scratch(tmp_path, "swap-")
    second = Scratch(tmp_path, "swap-")
    assert sorted(tmp_path.iterdir()) == sorted([first.path, second.path])
    first.close()
    second.close()
    assert list(tmp_path.iterdir()) == []

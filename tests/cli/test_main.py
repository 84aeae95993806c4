"""What becomes of an error on its way out."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from gptscale.cli.main import INTERRUPTED, _end, _refusal


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.EACCES, "a/b.bin: Permission denied; let this user read and write it, or choose another path"),
        (errno.ENOTDIR, "a/b.bin: Not a directory; move away what is there, or choose another path"),
    ],
)
def test_a_path_that_the_system_refuses_is_one_line(number: int, line: str) -> None:
    assert _refusal(OSError(number, os.strerror(number), "a/b.bin")) == line


def test_other_errors_keep_their_traceback() -> None:
    for error in (FileNotFoundError(errno.ENOENT, "gone", "a"), PermissionError("no path"), ValueError("ours")):
        assert _refusal(error) is None


@pytest.mark.parametrize(("code", "at_once"), [(INTERRUPTED, True), (2, False)])
def test_an_interrupted_command_does_not_wait_for_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, code: int, at_once: bool
) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    written = Event()
    with ThreadPoolExecutor(1, thread_name_prefix="checkpoint") as disk:
        disk.submit(written.wait)
        with pytest.raises(SystemExit):
            _end(code)
        written.set()
    assert left == [code] * at_once

"""What becomes of an error on its way out."""

import errno
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from gptscale.cli import main
from gptscale.cli.main import INTERRUPTED, USERS_MISTAKE, _refusal
from gptscale.errors import TakenOverError, TrainingError


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


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes of exits that skip the interpreter's clean-up; others follow."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(sys, "argv", ["gptscale", "train"])
    return codes


def ends_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the command end with an error."""

    def fail(**options: object) -> None:
        raise error

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(SystemExit):
        main.main()


@pytest.mark.parametrize(
    ("error", "at_once"), [(KeyboardInterrupt(), [INTERRUPTED]), (TrainingError("the disk is gone"), [])]
)
def test_an_interrupted_command_does_not_wait_for_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, left: list[int], error: BaseException, at_once: list[int]
) -> None:
    written = Event()
    with ThreadPoolExecutor(1, thread_name_prefix="checkpoint") as disk:
        disk.submit(written.wait)
        ends_with(monkeypatch, error)
        written.set()
    assert left == at_once


def test_an_interrupted_command_that_writes_nothing_cleans_up(monkeypatch: pytest.MonkeyPatch, left: list[int]) -> None:
    ends_with(monkeypatch, KeyboardInterrupt())
    assert left == []


def test_a_start_whose_run_goes_on_elsewhere_leaves_before_anything_marks_it_as_ended(
    monkeypatch: pytest.MonkeyPatch, left: list[int]
) -> None:
    ends_with(monkeypatch, TakenOverError("by a later start"))
    assert left == [USERS_MISTAKE]

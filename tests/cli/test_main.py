"""What becomes of an error on its way out."""

import errno
import os

import pytest

from gptscale.cli.main import _refusal


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

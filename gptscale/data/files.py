"""The files of a corpus, and what killed writers leave behind there and in run folders."""

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from gptscale import disk
from gptscale.errors import DataError

_TEMPORARY = re.compile(r"\..+\.(?P<host>[^.]+)\.(?P<pid>\d{1,9})\.[0-9a-f]{8}\.tmp")
FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)

_FORGOTTEN_S = 24 * 3600
"""Another machine's processes cannot be asked; what they have not touched for so long is nobody's."""


def write_whole(path: Path, *pieces: bytes | memoryview) -> None:
    """Write a file of a corpus whole or not at all. Raises DataError where the disk refuses it."""
    with refusal_is_said(path):
        disk.write_whole(path, *pieces)


def remove_leftovers(folder: Path, *, finished: bool = False) -> None:
    """Delete the temporary files of writers that were killed; those of other living processes stay.

    In a finished corpus all of another machine's are left over: it was lost, or makes what is there already.
    """
    for path in folder.glob(".*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        elsewhere = finished and found is not None and found["host"] != disk.this_host()
        if found and (elsewhere or _is_leftover(path, found["host"], int(found["pid"]))):
            path.unlink(missing_ok=True)


def bytes_half_written(folder: Path) -> int:
    """What the temporary files of a folder hold, those of other machines too."""
    total = 0
    for path in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@contextmanager
def refusal_is_said(path: Path) -> Iterator[None]:
    """Turn the refusal of a full disk, of a quota, of a limit or of a disk that may not be written into a DataError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DataError(
                f"no space left to write {path.name}, data.dir={path.parent}; free some space and run "
                "prepare again, which goes on from here, or choose a data.dir on a larger disk"
            ) from None
        if error.errno == errno.EFBIG:
            raise DataError(
                f"{path.name} is larger than a file may be, data.dir={path.parent}; raise the limit (ulimit -f), "
                "choose a data.dir whose disk takes larger files, or lower data.documents_per_shard"
            ) from None
        if error.errno == errno.ENOENT:
            raise DataError(
                f"{path.name} was taken away while it was written, data.dir={path.parent}, by --finish on another "
                "machine or by hand; run prepare again, which goes on from here"
            ) from None
        if error.errno in _FORBIDDEN:
            raise DataError(
                f"{path.name} cannot be written, data.dir={path.parent}: {error.strerror}; choose another data.dir"
            ) from None
        raise


def _is_leftover(path: Path, host: str, pid: int) -> bool:
    if host == disk.this_host():
        return pid == os.getpid() or not psutil.pid_exists(pid)
    try:
        return time.time() - path.stat().st_mtime > _FORGOTTEN_S
    except FileNotFoundError:
        return False

"""Files that are whole or absent, and their hashes."""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gptscale.errors import DataError

_TEMPORARY = re.compile(r"\..+\.(\d{1,9})\.tmp")


def write_whole(path: Path, *pieces: bytes | memoryview) -> None:
    """Write the pieces to a temporary name, force them to disk and rename.

    A reader meets the old file or the new one, also after a crash. Raises DataError on a full disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _full_disk_is_said(path):
        try:
            with temporary.open("wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of writers that were killed; those of other living processes stay."""
    for path in folder.glob(".*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if found and not _is_another_process(int(found[1])):
            path.unlink(missing_ok=True)


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _full_disk_is_said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"no space left to write {path.name}, data.dir={path.parent}; free some space and run "
            "prepare again, or choose a data.dir on a larger disk"
        ) from None


def _is_another_process(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, as somebody else's
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""A folder of this process alone, and those that killed processes have left beside it."""

import fcntl
import glob
import os
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

MARK = ".lock-of-gptscale"
"""A file in every such folder, which its process holds a lock of; no other folder is ever removed."""

_RANDOM = "?" * 8
"""What mkdtemp puts behind a prefix."""


class Scratch:
    """A new folder, which is gone after `close`, or when another process makes one beside it after this one's end.

    The lock is of a file that is open for writing: on a network's disk other machines see it, where they see any.
    """

    def __init__(self, disk: Path, prefix: str) -> None:
        """Its name begins with the prefix, as those do that are removed. Raises OSError where nothing can be made."""
        _remove_left(disk, prefix)
        self.path = Path(mkdtemp(prefix=prefix, dir=disk))
        unmarked = self.path / "unmarked"
        self._lock = os.open(unmarked, os.O_RDWR | os.O_CREAT)
        with suppress(OSError):  # a disk without locks: nobody removes this folder
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unmarked.rename(self.path / MARK)  # which is locked as soon as it is there

    def close(self) -> None:
        """Remove the folder."""
        _remove(self.path, self._lock)


def _remove_left(disk: Path, prefix: str) -> None:
    """Remove folders whose processes are gone; those of other users stay."""
    for mark in disk.glob(f"{glob.escape(prefix)}{_RANDOM}/{MARK}"):
        with suppress(OSError):
            lock = os.open(mark, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
            else:
                _remove(mark.parent, lock)


def _remove(folder: Path, lock: int) -> None:
    """Remove a folder, its mark last, so that one that is half removed can be found again, and when it is closed.

    A network's disk keeps a file that is open under another name, and with it the folder.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != MARK:
                path.unlink(missing_ok=True)
    os.close(lock)
    shutil.rmtree(folder, ignore_errors=True)

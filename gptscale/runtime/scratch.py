"""A folder of this process alone, and those that killed processes have left beside it."""

import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp


class Scratch:
    """A new folder, which is gone after `close`, or when another process makes one on the disk after this one's end."""

    def __init__(self, disk: Path, prefix: str = "gptscale-") -> None:
        """Its name begins with the prefix, as those do that are removed. Raises OSError where nothing can be made."""
        with _alone(disk):  # nobody looks between a folder's making and its lock
            _remove_left(disk, prefix)
            self.path = Path(mkdtemp(prefix=prefix, dir=disk))
            self._lock = os.open(self.path, os.O_RDONLY)
            with suppress(OSError):  # where there are no locks, nobody removes anything
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


@contextmanager
def _alone(disk: Path) -> Iterator[None]:
    """Hold off the others on this disk; a lock that nobody can have (some networks' disks) holds off nobody."""
    folder = os.open(disk, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _remove_left(disk: Path, prefix: str) -> None:
    """Remove folders whose processes are gone; those of other users stay."""
    for folder in disk.glob(f"{glob.escape(prefix)}*/"):
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)

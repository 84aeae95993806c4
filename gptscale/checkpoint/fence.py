"""The fence of a run folder: a number for each start, which only grows. Who holds an older one may write nothing.

A job is started again when its scheduler has lost sight of a node, and the ranks there may live on, or wake up after
an hour. A lock does not tell them apart: it vanishes with a server's lease or stays with a process that nobody can
reach. So every start makes a new file, fence/000007, with O_EXCL, which every file system and every NFS since version 3
decides at the server, and the holder of the highest number is the run. Nothing waits for anybody.

Why no checkpoint of an older start can take its name after a newer one has begun to read:

1. A save is written into .unfinished-step-S-N, where N is the start's number, and becomes a checkpoint by one rename.
2. Right before the rename, with that folder in place, the older start looks at the fence.
3. The newer start first makes its file, then renames every unfinished folder of smaller numbers away, and only then
   reads which checkpoints there are.

If the older looked before the newer's file was there, its folder was there before the newer's sweep. Either its rename
came before the sweep took the folder: then the checkpoint is whole, and the newer start sees it when it reads. Or it
comes after: then there is nothing to rename, and it fails. If it looked later, it saw the newer's file and did not
rename. The order of two renames of one name is the server's, so no cache and no clock takes part in this. Nor can the
rename replace a newer start's checkpoint of the same step: a folder that is not empty is never renamed over. An
older start deletes nothing of a newer one either: it sweeps by number, and looks at the fence again before it prunes.

A client of a network file system may remember what a folder held. A look that has to be right therefore makes and
deletes a file there first: the server's answer shows the client that its memory is old.
"""

import logging
import os
import re
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from gptscale.checkpoint.layout import MANIFEST, checkpoints_dir
from gptscale.errors import TakenOverError, TrainingError
from gptscale.runtime.slurm import job_name

LOG = logging.getLogger(__name__)

_UNFINISHED = re.compile(r"\.unfinished-step-\d{8,}-(\d{6,})")


class Fence:
    """The number that a start holds in a run folder. Number 0 is for a folder that nobody else writes."""

    def __init__(self, run_dir: Path, number: int = 0) -> None:
        self.run_dir = run_dir
        self.number = number

    @classmethod
    def take(cls, run_dir: Path) -> "Fence":
        """Take the next number, which fences off every start before; one process of a run does. Raises OSError."""
        folder = _folder(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        while True:
            number = max(_newest(run_dir, fresh=True), number) + 1
            try:
                handle = os.open(folder / f"{number:06d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                continue
            with os.fdopen(handle, "w") as file:
                file.write(f"{job_name() or 'no job'}, process {os.getpid()} on {socket.gethostname()}\n")
            break
        sweep(run_dir, number)
        return cls(run_dir, number)

    def holds(self) -> bool:
        """Whether this number is the last, and still there, as far as this process knows."""
        return _newest(self.run_dir, fresh=False) == self.number

    def mark(self) -> str | None:
        """What this start has written at its number, None where this process sees no such file."""
        folder = _folder(self.run_dir)
        try:
            refresh(folder)
            return (folder / f"{self.number:06d}").read_text(errors="replace")
        except FileNotFoundError:
            return None

    def check(self, *, fresh: bool = False) -> None:
        """Raise TakenOverError if somebody has taken a number since, and TrainingError if the folder is gone.

        fresh asks the server of a network file system.
        """
        newest = _newest(self.run_dir, fresh=fresh)
        if newest < self.number:
            raise TrainingError(
                f"run.dir={self.run_dir} was deleted or moved while this run was writing it; move it back and start "
                "the same command again to go on from its last checkpoint. Without it, that begins anew"
            )
        if newest > self.number:
            note = (_folder(self.run_dir) / f"{newest:06d}").read_text(errors="replace").strip()
            holder = note or "which has just begun"
            raise TakenOverError(
                f"run.dir={self.run_dir} was taken over by a later start ({holder}); this one has "
                "written nothing since and ends. If it was started twice by mistake, the later one goes on alone"
            )


def unfinished_dir(final: Path, number: int) -> Path:
    """Where the start with a number writes a checkpoint before it gets its name."""
    return final.with_name(f".unfinished-{final.name}-{number:06d}")


def discarded_dir(path: Path) -> Path:
    """A name for a folder that is on its way out, which no other start uses."""
    return path.with_name(f".old-{path.name.lstrip('.')}-{token_hex(4)}")


def sweep(run_dir: Path, number: int) -> None:
    """Take away what interrupted saves and deletions left, up to those of the start with this number.

    A folder is renamed before it is emptied, so that whoever still writes it finds all of it or nothing.
    """
    folder = checkpoints_dir(run_dir)
    if not folder.is_dir():
        return
    refresh(folder)
    for leftover in folder.glob(".*-step-*"):
        match = _UNFINISHED.fullmatch(leftover.name)
        if match and int(match[1]) > number:
            continue
        remove(leftover)


def remove(leftover: Path) -> None:
    """Take away an unfinished or discarded folder, which loses its name before it is emptied. Raises OSError."""
    doomed = leftover
    if not leftover.name.startswith(".old-"):
        doomed = discarded_dir(leftover)
        with suppress(FileNotFoundError):  # it became a checkpoint just now
            leftover.rename(doomed)
    if doomed.is_symlink():  # to a checkpoint that somebody keeps elsewhere
        doomed.unlink(missing_ok=True)
    shutil.rmtree(doomed, ignore_errors=True)


def discard(checkpoint: Path) -> None:
    """Take a checkpoint that need not stay away from the others; the next sweep deletes it.

    A folder that cannot be renamed, such as one in a container's image, is deleted where it is, its manifest first.
    What cannot be deleted either is said, and is no reason to end a run.
    """
    try:
        # A crash in the middle of deleting leaves nothing that looks whole.
        checkpoint.rename(discarded_dir(checkpoint))
    except FileNotFoundError:  # somebody has deleted it, who may
        return
    except OSError:
        try:
            (checkpoint / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(checkpoint)
        except OSError as error:
            LOG.warning("%s need not stay, but cannot be deleted: %s; do so before the disk is full", checkpoint, error)


def _folder(run_dir: Path) -> Path:
    return run_dir / "fence"


def _newest(run_dir: Path, *, fresh: bool) -> int:
    folder = _folder(run_dir)
    try:
        if fresh:
            refresh(folder)
        return max((int(name) for name in os.listdir(folder) if name.isdigit()), default=0)
    except FileNotFoundError:
        return 0


def refresh(folder: Path) -> None:
    """Let a network file system's client see a folder as it is now."""
    probe = folder / f".probe-{token_hex(4)}"
    probe.touch()
    probe.unlink()

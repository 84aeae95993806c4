"""What torch.compile keeps on disk from start to start, without what a killed compiler left unfinished there."""

import fcntl
import sys
from pathlib import Path

WHOLE_ELF_BYTES = 64
"""The header of a 64-bit ELF file, which says where the table of its sections is."""


def remove_halves() -> list[Path]:
    """Remove compiled files that were never finished, and give their paths; torch compiles what is missing.

    Torch takes any file that is there for a finished one, so without this no later start would get past a half one.
    A file is half if its table of sections, which linkers write last, lies beyond its end, or if the folder that
    torch makes beside it while it compiles is still there. What somebody is at work on is locked, and stays.
    """
    if sys.platform != "linux":
        return []
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    folders = {Path(cache_dir()), Path(default_cache_dir())}  # the second has all compiled headers
    found = [path for folder in folders for ending in ("so", "o", "gch") for path in folder.rglob(f"*.{ending}")]
    return sorted(path for path in set(found) if _is_half(path) and _removed(path))


def _is_half(path: Path) -> bool:
    return path.with_name(f"{path.stem}_CxxBuild").is_dir() or (path.suffix != ".gch" and not _is_whole(path))


def _is_whole(path: Path) -> bool:
    """Whether a 64-bit ELF file reaches to the end of its table of sections."""
    with path.open("rb") as file:
        header = file.read(WHOLE_ELF_BYTES)
    if len(header) < WHOLE_ELF_BYTES or not header.startswith(b"\x7fELF"):
        return False
    numbers = (header[40:48], header[58:60], header[60:62])
    table, entry_bytes, entries = (int.from_bytes(number, sys.byteorder) for number in numbers)
    return table > 0 and table + entry_bytes * entries <= path.stat().st_size


def _removed(path: Path) -> bool:
    """Remove a file, if nobody holds the lock under which torch compiles it."""
    locks = path.with_name("locks") if path.suffix == ".gch" else path.parents[1] / "locks"
    try:
        locks.mkdir(exist_ok=True)
        with (locks / f"{path.name.partition('.')[0]}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except OSError:  # held, not ours, or just removed by another rank
        return False
    return True

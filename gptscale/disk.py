"""Files that are whole or not there, whatever happens to the machine."""

import os
import resource
import secrets
import socket
from collections.abc import Iterable
from contextlib import suppress
from hashlib import file_digest
from pathlib import Path

from xxhash import xxh3_64_intdigest, xxh3_128

CHUNK_BYTES = 2**24

OTHER_FILES = 512
"""How many more a process may open besides those that it asks for: connections, libraries, checkpoints."""

_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""Linux' own number for the one that is no container's (PROC_PID_INIT_INO)."""


def write_whole(path: Path, *pieces: bytes | memoryview) -> None:
    """Write the pieces to a temporary name, force them to disk and rename. Raises OSError."""
    write_stream(path, pieces)


def write_stream(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """As `write_whole`, of pieces that come one after another. Raises OSError, and what making them raises.

    A reader meets the old content or the new, also after a crash.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_hashed(path: Path, pieces: Iterable[memoryview]) -> tuple[int, str]:
    """Write the pieces one after the other; returns bytes and XXH3-128 when they are on disk. Raises OSError.

    Hashed while it is written: reading a large file back would cost as much again. XXH3 keeps up with the fastest
    disks; it finds damage, and promises nothing against somebody who forges.
    """
    size, digest = 0, xxh3_128()
    with path.open("wb") as file:
        for piece in pieces:
            for start in range(0, piece.nbytes, CHUNK_BYTES):
                chunk = piece[start : start + CHUNK_BYTES]
                digest.update(chunk)
                size += file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def fast_hash_file(path: Path) -> str:
    """XXH3-128 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return file_digest(file, xxh3_128).hexdigest()


def seeded_hash(content: bytes | memoryview, seed: int) -> int:
    """XXH3-64 of some bytes under a seed of 64 bits, as an unsigned number."""
    return xxh3_64_intdigest(content, seed)


def temporary_path(path: Path) -> Path:
    """A name beside path that no other writer has, on this machine or another; it says whose it is."""
    return path.with_name(f".{path.name}.{this_host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def this_host() -> str:
    """This machine's name without its domain, so that it has no dots; in a container that has processes of its own,
    with the number of their namespace."""
    name = socket.gethostname().split(".")[0]
    with suppress(OSError):
        namespace = os.stat("/proc/self/ns/pid").st_ino
        return name if namespace == _FIRST_PID_NAMESPACE else f"{name}-{namespace}"
    return name


def allow_open_files(more: int) -> int | None:
    """Let this process have so many more files open, since 1,024 are the usual limit; gives its limit if it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/dev/fd")) + more
    if soft == resource.RLIM_INFINITY or needed + OTHER_FILES <= soft:
        return None
    wanted = needed + OTHER_FILES if hard == resource.RLIM_INFINITY else min(needed + OTHER_FILES, hard)
    if needed >= wanted:
        return hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return None


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk; a rename is safe only after that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()

"""Reads a whole corpus and compares it with the hashes of its manifest."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptscale.data.blocks import wrong_range
from gptscale.data.manifest import FILE_NAME, Manifest, load_manifest
from gptscale.data.shard import ShardHeader, starts_path
from gptscale.data.workers import cores
from gptscale.disk import hash_file
from gptscale.errors import DataError


@dataclass(frozen=True)
class HashedFile:
    """A file of a corpus and what its manifest says of it."""

    path: Path
    what: str
    sha256: str
    size: int | None = None
    """Bytes that its tokens take, if it holds tokens."""
    blocks_sha256: tuple[str, ...] = ()
    remedy: str = "run prepare again, which makes that shard again"


def verify_corpus(folder: Path) -> None:
    """Raise DataError for the first file of a corpus, in the manifest's order, that is not as it was written."""
    if problems := find_damage(folder):
        raise DataError(problems[0])


def find_damage(folder: Path) -> list[str]:
    """Read every file of a corpus in parallel and compare its hash with the manifest's; gives a line for each damage.

    It names the first bytes of the file that are wrong (in steps of 64 MiB). A thread on each core does it, since
    hashing leaves Python's lock.
    """
    with ThreadPoolExecutor(cores()) as threads:
        found = threads.map(damage_of, hashed_files(folder, load_manifest(folder)))
        return [problem for problem in found if problem is not None]


def hashed_files(folder: Path, manifest: Manifest) -> list[HashedFile]:
    """Every shard with its document starts, in the manifest's order."""
    files: list[HashedFile] = []
    for shard in manifest.shards:
        path, dtype = folder / shard.file, manifest.settings.dtype
        if shard.offset is not None:
            size = shard.offset + shard.tokens * np.dtype(dtype).itemsize
            remedy = "put the file back, or adopt it again"
            files.append(HashedFile(path, "adopted file", shard.sha256, size, shard.blocks_sha256, remedy))
            continue
        size = ShardHeader(dtype, shard.tokens).file_bytes
        files.append(HashedFile(path, "shard", shard.sha256, size, shard.blocks_sha256))
        if shard.starts_sha256 is not None:
            files.append(HashedFile(starts_path(path), "document starts", shard.starts_sha256))
    return files


def damage_of(file: HashedFile) -> str | None:
    """What is wrong with a file, in one line; None for a whole one."""
    try:
        found, size = hash_file(file.path), file.path.stat().st_size
        if found == file.sha256:
            return None if file.size in (None, size) else _miscounted(file, size)
        start, stop = wrong_range(file.path, file.blocks_sha256)
    except FileNotFoundError:
        return f"{file.what} {file.path} is missing; {file.remedy}"
    except PermissionError:
        return f"{file.what} {file.path} may not be read by this user; change its permissions"
    except OSError as error:
        return f"{file.what} {file.path} cannot be read: {error.strerror}; {file.remedy}"
    return (
        f"{file.what} {file.path} is damaged in its bytes {start:,} to {stop:,}: its SHA-256 is {found[:12]}..., not "
        f"the {file.sha256[:12]}... of {FILE_NAME}; {file.remedy}"
    )


def _miscounted(file: HashedFile, found: int) -> str:
    """Of a manifest whose count of tokens was changed behind its back, though the file is as it was written."""
    return (
        f"{FILE_NAME} says that {file.what} {file.path} has {file.size:,} bytes, and it has {found:,}, with the "
        f"right hash: {FILE_NAME} was changed; {file.remedy}"
    )

"""What tells that the files of a source are the same: names, sizes and contents or times of change."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from gptscale.data.globs import folder_of
from gptscale.disk import hash_file
from gptscale.errors import DataError

Stamps = dict[Path, tuple[int, int] | None]

HASHED_BYTES = 2**30
"""Up to this size in all, files are identified by their content; above it by size and time of change."""


def stamp(path: Path) -> tuple[int, int] | None:
    """A file's size and time of change; None if it is gone."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def describe_files(files: Sequence[Path], root: Path) -> list[dict[str, str | int]]:
    """Name, size and identity of each file; names are relative to root, so the folder may move."""
    small = sum(path.stat().st_size for path in files) <= HASHED_BYTES
    return [{"name": _name(path, root), **_size_and_identity(path, small)} for path in files]


def root_of(path: Path, files: Sequence[Path]) -> Path:
    """The folder that a source's files are named from; that of a glob counts only where their bare names repeat."""
    if path.is_dir():
        return path
    return folder_of(path) if len({file.name for file in files}) < len(files) else path.parent


def hash_texts(texts: Sequence[str]) -> str:
    """The SHA-256 of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(content) + content)
    return digest.hexdigest()


def check_name(path: Path) -> None:
    """Raise DataError for a path that no manifest can hold."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(
            f"the path {str(path)!r} is no UTF-8, and so no manifest can hold it; rename that file"
        ) from None


def _size_and_identity(path: Path, small: bool) -> dict[str, str | int]:
    stat = path.stat()
    known_by: dict[str, str | int] = {"sha256": hash_file(path)} if small else {"mtime_ns": stat.st_mtime_ns}
    return {"bytes": stat.st_size, **known_by}


def _name(path: Path, root: Path) -> str:
    check_name(path)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name

"""Zstandard files. Their readers stop quietly where a file was cut short, so that is looked for before."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from gptscale.errors import DataError

_LONGEST_HEADER = 18
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_SAME_BYTE = 1  # the type of a block that is one byte, repeated


def check_whole(files: Sequence[Path], path: str) -> None:
    """Raise DataError for a Zstandard file that was cut short; only the headers of its blocks are read (RFC 8878).

    A file that begins with no header of Zstandard is left to its readers, which refuse it.
    """
    for file in files:
        if file.suffix.lower() == ".zst" and not _is_whole(file):
            raise DataError(f"data.source.path={path} cannot be read: {file.name} was cut short; copy it again")


def _is_whole(file: Path) -> bool:
    import zstandard

    size, at = file.stat().st_size, 0
    try:
        with file.open("rb") as opened:
            while at < size:
                at = _frame_end(opened, at)
    except zstandard.ZstdError:
        return at == 0
    return at == size


def _frame_end(file: BinaryIO, at: int) -> int:
    """Where the frame ends that begins at a place; behind the file's end if it is cut short."""
    import zstandard

    file.seek(at)
    head = file.read(_LONGEST_HEADER)
    if int.from_bytes(head[:4], "little") in _SKIPPABLE:
        return at + 8 + int.from_bytes(head[4:8], "little")
    checksum = 4 if zstandard.get_frame_parameters(head).has_checksum else 0
    at += zstandard.frame_header_size(head)
    last = 0
    while not last:
        file.seek(at)
        block = file.read(3)
        if len(block) < 3:
            return at + 3
        fields = int.from_bytes(block, "little")
        last, kind, size = fields & 1, fields >> 1 & 3, fields >> 3
        at += 3 + (1 if kind == _SAME_BYTE else size)
    return at + checksum

"""A shard: a 1,024-byte header, then tokens. Beside it lie the starts of its documents.

The header is that of llm.c (karpathy/llm.c, dev/data/data_common.py): 256 little-endian int32, of which the
first three are magic, version and token count. llm.c and modded-nanogpt read these files.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from gptscale.data.files import refusal_is_said, write_whole
from gptscale.data.manifest import Dtype
from gptscale.disk import sync_folder, temporary_path
from gptscale.errors import DataError

HEADER_BYTES = 1024
MOST_TOKENS = 2**31 - 1
"""The token count is an int32."""

Tokens = npt.NDArray[np.unsignedinteger[Any]]

_MAGIC_AND_VERSION: dict[Dtype, tuple[int, int]] = {"uint16": (20240520, 1), "uint32": (20240801, 7)}


@dataclass(frozen=True)
class ShardHeader:
    """The first bytes of a shard: width and number of its tokens."""

    dtype: Dtype
    tokens: int

    @property
    def file_bytes(self) -> int:
        """How long the whole file is."""
        return HEADER_BYTES + self.tokens * np.dtype(self.dtype).itemsize

    def to_bytes(self) -> bytes:
        """The header as it stands in the file."""
        fields = np.zeros(HEADER_BYTES // 4, dtype="<i4")
        fields[:3] = *_MAGIC_AND_VERSION[self.dtype], self.tokens
        return fields.tobytes()


class ShardWriter:
    """Writes a shard piece by piece; it appears whole, with its document starts beside it, or not at all.

    Use it in a `with` statement: what was not finished is deleted. Raises DataError on a full disk and for
    more tokens than the header can count.
    """

    def __init__(self, path: Path, dtype: Dtype) -> None:
        self.path = path
        self.tokens = 0
        self._name = dtype
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._temporary = temporary_path(path)

    def append(self, tokens: Tokens) -> None:
        """Write tokens behind those before."""
        self.tokens += len(tokens)
        if self.tokens > MOST_TOKENS:
            raise DataError(
                f"{self.path.name} would hold {self.tokens:,} tokens, and a shard holds {MOST_TOKENS:,} at most; one "
                "document is that long: cut it into several (of plain text, data.source.documents=paragraph does)"
            )
        with refusal_is_said(self.path):
            self._file.write(np.ascontiguousarray(tokens, self.dtype).data)

    def finish(self, starts: npt.NDArray[np.int64]) -> None:
        """Write the document starts, (documents, 2), then the header, and give the shard its name."""
        _write_starts(starts_path(self.path), starts)
        with refusal_is_said(self.path):
            self._file.seek(0)
            self._file.write(ShardHeader(self._name, self.tokens).to_bytes())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(self.path)
            sync_folder(self.path.parent)

    def __enter__(self) -> Self:
        with refusal_is_said(self.path):
            self._file: BinaryIO = self._temporary.open("wb")
            self._file.write(bytes(HEADER_BYTES))  # its place; the count is known at the end
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # what a full disk left in the buffer cannot be written now either
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def find_header(file: BinaryIO) -> ShardHeader | None:
    """The header of an open file of llm.c's format; None for another file."""
    magic, version, tokens = _first_fields(file)
    for dtype, known in _MAGIC_AND_VERSION.items():
        if (magic, version) == known:
            return ShardHeader(dtype, tokens)
    return None


def _first_fields(file: BinaryIO) -> list[int]:
    file.seek(0)
    fields: list[int] = np.frombuffer(file.read(12).ljust(12, b"\0"), dtype="<i4").tolist()
    return fields


def open_shard(path: Path) -> Tokens:
    """Map a shard's tokens into memory, (tokens,).

    Raises DataError when the file is missing, no shard, or not as long as its header says.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise DataError(f"shard {path} is missing; run prepare again, which makes it again") from None
    with file:
        header = find_header(file)
        if header is None:
            magic, version = _first_fields(file)[:2]
            raise DataError(
                f"{path} is no token shard: it begins with magic {magic}, version {version}; "
                "run prepare again, which makes it again"
            )
        found = os.fstat(file.fileno()).st_size
        if found != header.file_bytes:
            raise DataError(
                f"shard {path} has {found:,} bytes, but its header says {header.file_bytes:,}; "
                "run prepare again, which makes it again"
            )
        dtype = np.dtype(header.dtype).newbyteorder("<")
        if header.tokens == 0:  # nothing cannot be mapped
            return np.empty(0, dtype)
        return np.memmap(file, dtype=dtype, mode="r", offset=HEADER_BYTES, shape=(header.tokens,))


def starts_path(shard: Path) -> Path:
    """Where the document starts of a shard lie."""
    return shard.with_suffix(".starts.npy")


def read_starts(shard: Path) -> npt.NDArray[np.int64]:
    """Map a shard's document starts, (documents, 2): token offset and source row."""
    starts: npt.NDArray[np.int64] = np.load(starts_path(shard), mmap_mode="r", allow_pickle=False)
    return starts


def _write_starts(path: Path, starts: npt.NDArray[np.int64]) -> None:
    content = BytesIO()
    np.save(content, starts.astype("<i8"), allow_pickle=False)
    write_whole(path, content.getbuffer())

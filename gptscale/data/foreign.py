"""Token files of other projects: where their tokens lie, read from their headers alone.

nanoGPT: uint16 without a header. llm.c and modded-nanogpt: the header that our shards have. Megatron-LM: tokens in
NAME.bin and, in NAME.idx, the magic MMIDIDX, version (uint64), type code (uint8), counts of sequences and of documents
+ 1 (uint64 each), then lengths (int32), byte positions (int64) and the document index (int64).
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptscale.data.file_kinds import kind_of
from gptscale.data.manifest import Dtype
from gptscale.data.shard import HEADER_BYTES, Tokens, find_header
from gptscale.errors import DataError

_MEGATRON = struct.Struct("<9sQBQQ")
_MEGATRON_MAGIC = b"MMIDIDX\0\0"
_MEGATRON_TYPES: dict[int, Dtype] = {8: "uint16", 4: "uint32"}  # 4 is int32, whose ids are never negative


_NUMPY_MAGIC = b"\x93NUMPY"

LOOKED_AT = 2**16
"""Numbers at the beginning of a file without a header that tell how wide they are."""

LOOKED_AT_LEAST = 64
"""Fewer may well be 0 at every second place."""


@dataclass(frozen=True)
class TokenFile:
    """A file of tokens and how they lie in it."""

    path: Path
    format: str
    dtype: Dtype
    offset: int
    """Bytes before the first token."""
    tokens: int


def recognise(path: Path) -> TokenFile:
    """What a token file is: Megatron-LM's if it has an index beside it, llm.c's by its header, else nanoGPT's.

    Raises DataError for a file that is missing, empty or damaged, and for text, tables and NumPy's own format.
    """
    try:
        found = _recognise(path)
    except OSError as error:
        hint = "; its index is there without it" if path.with_suffix(".idx").exists() else ""
        raise DataError(f"{path} cannot be adopted: {error.strerror}{hint}; check its path") from None
    if found.tokens == 0:
        raise DataError(f"{path} ({found.format}) holds no tokens; leave it out")
    return found


def _recognise(path: Path) -> TokenFile:
    if path.suffix == ".idx":
        raise DataError(f"{path} is an index; name {path.with_suffix('.bin').name}, which lies beside it")
    size = path.stat().st_size
    if path.with_suffix(".idx").exists():
        return _megatron(path, size)
    with path.open("rb") as file:
        header = find_header(file)
    if header is not None:
        if size != header.file_bytes:
            raise DataError(f"{path} has {size:,} bytes, but its header says {header.file_bytes:,}; copy it again")
        return TokenFile(path, f"llm.c ({header.dtype} behind its header)", header.dtype, HEADER_BYTES, header.tokens)
    if (kind := kind_of(path)) is not None or _begins(path, _NUMPY_MAGIC):
        raise DataError(
            f"{path} is {kind or 'an array of NumPy'}, no token file; write its tokens as uint16 and nothing else, as "
            "numpy.ndarray.tofile does"
        )
    if size == 0 or size % 2:
        raise DataError(
            f"{path} has {size:,} bytes, which are no uint16 tokens, and no header that is known; "
            "copy it again if it was cut off"
        )
    if _are_wider(path):
        raise DataError(
            f"{path} has no header, and every second of its numbers of 16 bits is 0, so its tokens are wider; write "
            "them as uint16, or as uint32 behind the header of llm.c"
        )
    return TokenFile(path, "nanoGPT (uint16 without a header)", "uint16", 0, size // 2)


def _begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _are_wider(path: Path) -> bool:
    """Whether a file without a header looks like tokens of more than 16 bits."""
    first = np.fromfile(path, "<u2", LOOKED_AT)
    return len(first) >= LOOKED_AT_LEAST and not first[1::2].any()


def map_tokens(path: Path, dtype: str, offset: int, tokens: int) -> Tokens:
    """Map tokens that lie behind offset bytes of a file into memory, (tokens,). Raises DataError if it has others."""
    kind = np.dtype(dtype).newbyteorder("<")
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"adopted file {path} cannot be read: {error.strerror}; put it back or adopt again") from None
    if found != offset + tokens * kind.itemsize:
        raise DataError(
            f"adopted file {path} has {found:,} bytes, not {offset + tokens * kind.itemsize:,} as when it was adopted; "
            "put it back or adopt again"
        )
    return np.memmap(path, dtype=kind, mode="r", offset=offset, shape=(tokens,))


def _megatron(path: Path, size: int) -> TokenFile:
    index = path.with_suffix(".idx")
    content = index.read_bytes()
    head = content[: _MEGATRON.size].ljust(_MEGATRON.size, b"\0")
    magic, version, code, sequences, documents = _MEGATRON.unpack(head)
    if (magic, version) != (_MEGATRON_MAGIC, 1):
        raise DataError(f"{index} is no index of Megatron-LM (MMIDIDX, version 1); move it away if it is not {path}'s")
    if code not in _MEGATRON_TYPES:
        raise DataError(f"{index} says type code {code}; 8 (uint16) and 4 (int32) hold tokens")
    if len(content) != _MEGATRON.size + 12 * sequences + 8 * documents:
        raise DataError(
            f"{index} has {len(content):,} bytes, which do not hold its {sequences:,} sequences; copy it again"
        )
    dtype = _MEGATRON_TYPES[code]
    width = np.dtype(dtype).itemsize
    lengths = np.frombuffer(content, "<i4", sequences, _MEGATRON.size).astype(np.int64)
    places = np.frombuffer(content, "<i8", sequences, _MEGATRON.size + 4 * sequences)
    ends = np.cumsum(lengths) * width
    if not np.array_equal(places, ends - lengths * width) or size != (ends[-1] if sequences else 0):
        raise DataError(f"{index} does not describe {path} as sequences one after another; adopt needs that")
    return TokenFile(path, f"Megatron-LM ({dtype} with an index)", dtype, 0, size // width)

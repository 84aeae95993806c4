"""Hashes of a file and of its blocks, so that damage can be named by its place."""

import hashlib
from pathlib import Path

BLOCK_BYTES = 2**26
"""64 MiB: short enough to name a place, and a terabyte of tokens has a megabyte of block hashes."""

_READ_BYTES = 2**20


def hash_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> tuple[str, tuple[str, ...]]:
    """The SHA-256 of a file, and those of its blocks in order if there are several."""
    whole, block = hashlib.sha256(), hashlib.sha256()
    blocks: list[str] = []
    view, left = memoryview(bytearray(_READ_BYTES)), block_bytes
    several = path.stat().st_size > block_bytes
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(view[: min(left, _READ_BYTES)]):
            whole.update(view[:count])
            if several:
                block.update(view[:count])
            left -= count
            if not left:
                blocks.append(block.hexdigest())
                block, left = hashlib.sha256(), block_bytes
    if left < block_bytes:
        blocks.append(block.hexdigest())
    return whole.hexdigest(), tuple(blocks) if several else ()


def wrong_range(path: Path, blocks: tuple[str, ...], block_bytes: int = BLOCK_BYTES) -> tuple[int, int]:
    """The first bytes, start to stop - 1, in which a damaged file is not what its block hashes say.

    A file without block hashes is one block.
    """
    size = path.stat().st_size
    _, found = hash_blocks(path, block_bytes)
    for number, wanted in enumerate(blocks):
        if number >= len(found) or found[number] != wanted:
            return number * block_bytes, min((number + 1) * block_bytes, size)
    return len(blocks) * block_bytes if blocks else 0, size

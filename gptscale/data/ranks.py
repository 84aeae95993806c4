"""A tokenizer's ranks from a file that must be whole."""

import hashlib
from binascii import a2b_base64
from pathlib import Path

from gptscale.errors import DataError


def read_ranks(path: Path, sha256: str) -> dict[bytes, int]:
    """The rank of every token, from lines of base64 and number. Raises DataError if the file is not what it was."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"GPT-2's ranks cannot be read: {error}; install gptscale again") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path.name} is damaged: its SHA-256 is {found[:12]}..., not {sha256[:12]}...; install gptscale again"
        )
    pairs = (line.split() for line in content.splitlines())
    return {a2b_base64(token): int(rank) for token, rank in pairs}

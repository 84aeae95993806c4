"""What a tokenizer's ids stand for: the bytes of each, their hash, and what decoding gives for an unknown one."""

import base64
import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint32]

END_OF_TEXT = "<|endoftext|>"

_UNKNOWN = "\ufffd".encode()  # what an id without a token decodes to


def bytes_of(ids: Sequence[int], pieces: Sequence[bytes | None]) -> bytes:
    """The bytes of ids whose tokens are pieces; those of U+FFFD for an id without a token."""
    known = (pieces[i] if 0 <= i < len(pieces) else None for i in ids)
    return b"".join(_UNKNOWN if piece is None else piece for piece in known)


def identity_of(name: str, pieces: Sequence[bytes | None], n_vocab: int) -> dict[str, str | int]:
    """What decides the ids, as it stands in a corpus' manifest.

    The hash is that of a rank file with these tokens, so for gpt2 it is bpe.GPT2_RANKS_SHA256.
    """
    lines = (b"%s %d\n" % (base64.b64encode(p), rank) for rank, p in enumerate(pieces) if p is not None)
    return {"name": name, "ranks_sha256": hashlib.sha256(b"".join(lines)).hexdigest(), "n_vocab": n_vocab}

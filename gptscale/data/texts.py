"""Texts of documents side by side, as Arrow keeps them: one buffer of UTF-8 and the offsets in it.

A batch of documents goes from the file to the tokenizer in this form, so no document becomes a Python string.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Texts = Any
"""A pyarrow.LargeStringArray without nulls, of valid UTF-8."""

Offsets = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


def as_texts(column: Any) -> Texts:
    """The texts of an Arrow array, chunked or not: null is empty, and invalid UTF-8 is mended as `utf8` does it."""
    if isinstance(column, pa.ChunkedArray):
        parts = [as_texts(chunk) for chunk in column.chunks]  # short offsets cannot count what chunks have together
        return parts[0] if len(parts) == 1 else join(parts or [list_texts([])])
    if pa.types.is_null(column.type):
        return list_texts([""] * len(column))
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    column = column.cast(pa.large_binary())
    content, offsets = flat(pc.fill_null(column, b"") if column.null_count else column)
    strings = _from_flat(content, offsets)
    try:
        strings.validate(full=True)
    except pa.ArrowInvalid:
        return list_texts(decode(bytes(piece)) for piece in pieces(strings))
    return strings


def list_texts(texts: Iterable[str]) -> Texts:
    """Python's strings as texts; half of a surrogate pair becomes U+FFFD."""
    encoded = [utf8(text) for text in texts]
    return _from_flat(np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)]))


def choose(texts: Texts, mask: npt.NDArray[np.bool_]) -> Texts:
    """The texts that a mask, (n,), chooses."""
    bits = pa.py_buffer(np.packbits(mask, bitorder="little"))  # pa.array would import pandas, which takes a second
    return texts.filter(pa.BooleanArray.from_buffers(pa.bool_(), len(mask), [None, bits]))


def join(parts: Sequence[Texts]) -> Texts:
    """Texts one after another."""
    return pa.concat_arrays(parts)


def to_list(texts: Texts) -> list[str]:
    """Texts as Python's strings."""
    return list(texts.to_pylist())


def flat(texts: Texts) -> tuple[Bytes, Offsets]:
    """The bytes of all texts and where each begins, (n + 1,), without a copy."""
    _, offsets_buffer, content_buffer = texts.buffers()
    offsets = (
        np.frombuffer(offsets_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        if len(texts)
        else np.zeros(1, np.int64)
    )
    content = np.frombuffer(content_buffer, np.uint8) if content_buffer is not None else np.empty(0, np.uint8)
    return content[offsets[0] : offsets[-1]], offsets - offsets[0]


def cut_at(text: Texts, places: list[int]) -> Texts:
    """One text cut into several, at ascending places within it, without a copy."""
    content, offsets = flat(text)
    assert len(offsets) == 2
    return _from_flat(content, np.array([0, *places, offsets[1]]))


def pieces(texts: Texts) -> Iterator[memoryview]:
    """The UTF-8 of one text after another, without a copy."""
    content, offsets = flat(texts)
    view = memoryview(content.data)
    return (view[start:stop] for start, stop in pairwise(offsets.tolist()))


def excerpts_of(texts: Texts, documents: int, size: int) -> Texts:
    """So many bytes of the beginning and of the middle of some texts, spread evenly."""
    every = max(1, len(texts) // documents)
    chosen = islice(pieces(texts), 0, None, every)
    starts = [piece[at : at + size] for piece in chosen for at in (0, len(piece) // 2)]
    return list_texts(str(start, "utf-8", "ignore") for start in starts)  # a cut through a character leaves it out


def utf8(text: str) -> bytes:
    """A text's bytes; half of a surrogate pair becomes U+FFFD, and two halves become their character."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _from_flat(content: Bytes, offsets: Offsets) -> Texts:
    return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(content))


def decode(content: bytes) -> str:
    """The text of bytes that may hold encoded surrogates, as JavaScript's and Java's writers leave them.

    In what is no UTF-8 even so, each wrong sequence becomes U+FFFD.
    """
    try:
        return content.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return content.decode("utf-8", "replace")

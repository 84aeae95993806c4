"""Tokenizers: GPT-2's, plain bytes, and tiktoken's other encodings. The home of tiktoken and gigatoken.

A document is always ordinary text here: `<|endoftext|>` written in it never becomes the special token.
"""

import base64
import difflib
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from gptscale.data.cuts import cuts_before_words
from gptscale.data.ranks import read_ranks
from gptscale.data.texts import Bytes, Offsets, Texts, excerpts_of, flat, list_texts, pieces, utf8
from gptscale.errors import DataError

if TYPE_CHECKING:
    import tiktoken
    import torch

Ids = npt.NDArray[np.uint32]

GPT2_RANKS = Path(__file__).with_name("gpt2.tiktoken")
GPT2_RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
# How GPT-2 cuts text before merging (openai/gpt-2, src/encoder.py), possessive so that it never backtracks.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
END_OF_TEXT = "<|endoftext|>"

_JUDGED_DOCUMENTS = 4  # of every few megabytes, in which gigatoken must agree with tiktoken
_JUDGED_BYTES = 2048  # at the start and in the middle of each
_UNKNOWN = "\ufffd".encode()  # what an id without a token decodes to


class Tokenizer(Protocol):
    """Text to token ids and back."""

    name: str
    n_vocab: int
    end_of_text: int
    pattern: str | None
    """How text is cut before merging; None where it is not."""

    @property
    def pieces(self) -> Sequence[bytes | None]:
        """The bytes of every id; None for an id without a token."""

    @property
    def specials(self) -> dict[str, int]:
        """The tokens that no text has."""

    @property
    def identity(self) -> dict[str, str | int]:
        """What decides the ids, as it stands in a corpus' manifest."""

    @property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of every token, (n_vocab,); 0 for end of text and for ids that no text has."""

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without an end-of-text token."""

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of many texts, the fast way."""

    def encode_texts(self, texts: Texts) -> tuple[Ids, Offsets]:
        """The ids of many texts in one array, and where each text's begin, (n + 1,)."""

    def cuts(self, content: Bytes, every: int) -> list[int]:
        """Places, about `every` bytes apart, at which a long text can be cut without a change of its ids."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""


def load_tokenizer(name: str, engine: str = "gigatoken") -> Tokenizer:
    """The tokenizer called gpt2, bytes, or as one of tiktoken's encodings.

    The engine tiktoken encodes everything itself, and gigatoken what it can; the ids are the same.

    Raises DataError for an unknown name, damaged ranks, or ranks that cannot be downloaded.
    """
    if name == "bytes":
        return ByteTokenizer()
    if name == "gpt2":
        return BpeTokenizer(name, _gpt2_encoding(), GPT2_RANKS if engine == "gigatoken" else None)
    return BpeTokenizer(name, _tiktoken_encoding(name))


def known_ranks(name: str) -> str | None:
    """The ranks_sha256 of bytes and gpt2, at no cost; None for a tokenizer that would have to be downloaded."""
    if name == "bytes":
        return str(ByteTokenizer().identity["ranks_sha256"])
    return GPT2_RANKS_SHA256 if name == "gpt2" else None


def text_to_ids(text: str, tokenizer: Tokenizer) -> "torch.Tensor":
    """Encode one text as a batch of one, (1, T) int64."""
    import torch  # not by those who only prepare: it takes seconds and 200 MB

    return torch.tensor([tokenizer.encode(text)], dtype=torch.int64)


def ids_to_text(ids: "torch.Tensor", tokenizer: Tokenizer) -> str:
    """Decode (1, T) or (T,) ids."""
    return tokenizer.decode(ids.reshape(-1).tolist())


def ids_to_bytes(ids: Sequence[int], tokenizer: Tokenizer) -> bytes:
    """The bytes of ids; those of U+FFFD for an id without a token."""
    pieces = tokenizer.pieces
    known = (pieces[i] if 0 <= i < len(pieces) else None for i in ids)
    return b"".join(_UNKNOWN if piece is None else piece for piece in known)


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of UTF-8, 256 is end of text."""

    name = "bytes"
    n_vocab = 257
    end_of_text = 256
    pattern: str | None = None
    pieces: Sequence[bytes | None] = (*(bytes([i]) for i in range(256)), END_OF_TEXT.encode())
    specials: dict[str, int] = {END_OF_TEXT: 256}  # noqa: RUF012 (nobody writes to it)

    @property
    def identity(self) -> dict[str, str | int]:
        """What decides the ids, as it stands in a corpus' manifest."""
        return _identity(self.name, self.pieces[:256], self.n_vocab)

    @property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of every token, (n_vocab,)."""
        return np.array([1] * 256 + [0])

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without an end-of-text token."""
        return list(utf8(text))

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of many texts."""
        return _split(*self.encode_texts(list_texts(texts)))

    def encode_texts(self, texts: Texts) -> tuple[Ids, Offsets]:
        """The ids of many texts in one array, and where each text's begin, (n + 1,)."""
        content, offsets = flat(texts)
        return content.astype(np.uint32), offsets

    def cuts(self, content: Bytes, every: int) -> list[int]:
        """Places, about `every` bytes apart, at which a long text can be cut without a change of its ids."""
        return cuts_before_words(content, every)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        return ids_to_bytes(ids, self).decode(errors="replace")


class BpeTokenizer:
    """A tiktoken encoding; where gigatoken reads its ranks too, batches are encoded by gigatoken."""

    def __init__(self, name: str, encoding: "tiktoken.Encoding", gigatoken_ranks: Path | None = None) -> None:
        self.name = name
        self.n_vocab = encoding.n_vocab
        self.end_of_text = encoding.eot_token
        self.pattern: str | None = encoding._pat_str
        self.specials = dict(encoding._special_tokens)
        self._judge = encoding
        self._gigatoken_ranks = gigatoken_ranks

    @cached_property
    def identity(self) -> dict[str, str | int]:
        """What decides the ids, as it stands in a corpus' manifest."""
        return _identity(self.name, self._ordinary, self.n_vocab)

    @cached_property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of every token, (n_vocab,)."""
        return np.array([len(piece or b"") for piece in self._ordinary])

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without an end-of-text token.

        Raises DataError where tiktoken panics and gigatoken cannot take over.
        """
        try:
            with _panic_is_said(self.name):
                return self._judge.encode_ordinary(text)
        except DataError:
            if self._gigatoken_ranks is None:
                raise
            return list(self.encode_batch([text])[0].tolist())

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of many texts."""
        return _split(*self.encode_texts(list_texts(texts)))

    def encode_texts(self, texts: Texts) -> tuple[Ids, Offsets]:
        """The ids of many texts, by gigatoken if it agrees with tiktoken on excerpts of this batch.

        Warns when it does not; the batch is tiktoken's then. Either way the ids depend on the batch alone.
        """
        if self._gigatoken_ranks is None:
            return self._encode_slowly(texts)
        excerpts = excerpts_of(texts, _JUDGED_DOCUMENTS, _JUDGED_BYTES)
        (mine, borders), (judged, judged_borders) = self._encode_fast(excerpts), self._encode_slowly(excerpts)
        if np.array_equal(mine, judged) and np.array_equal(borders, judged_borders):
            return self._encode_fast(texts)
        warnings.warn("gigatoken and tiktoken disagree, so tiktoken encodes (slower)", stacklevel=2)
        return self._encode_slowly(texts)

    def cuts(self, content: Bytes, every: int) -> list[int]:
        """Places, about `every` bytes apart, at which a long text can be cut; for gpt2 only, whose pattern is known."""
        return cuts_before_words(content, every) if self.name == "gpt2" else []

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        return ids_to_bytes(ids, self).decode(errors="replace")

    def _encode_slowly(self, texts: Texts) -> tuple[Ids, Offsets]:
        with _panic_is_said(self.name):
            encoded = [
                self._judge.encode_to_numpy(str(piece, "utf-8"), disallowed_special=()) for piece in pieces(texts)
            ]
        offsets = np.cumsum([0, *map(len, encoded)])
        return np.concatenate([np.empty(0, np.uint32), *encoded], dtype=np.uint32), offsets

    def _encode_fast(self, texts: Texts) -> tuple[Ids, Offsets]:
        layout = self._gigatoken.encode_batch(_borrowed(texts)).layout
        return layout.content.data, np.asarray(layout.offsets.data)

    @cached_property
    def _gigatoken(self) -> Any:
        import gigatoken

        # gigatoken finds special tokens in text wherever it knows any, so it is told of none.
        return gigatoken.Tokenizer.from_tiktoken(self._gigatoken_ranks, pretokenizer="gpt2", special_tokens={})

    @cached_property
    def pieces(self) -> list[bytes | None]:
        """The bytes of every id; None where an encoding leaves an id free."""
        return [_piece(self._judge, i) for i in range(self.n_vocab)]

    @property
    def _ordinary(self) -> list[bytes | None]:
        """The bytes of every id that text can have."""
        return [None if self._judge.is_special_token(i) else p for i, p in enumerate(self.pieces)]


def _identity(name: str, pieces: Sequence[bytes | None], n_vocab: int) -> dict[str, str | int]:
    """The hash is that of a rank file with these tokens, so for gpt2 it is GPT2_RANKS_SHA256."""
    lines = (b"%s %d\n" % (base64.b64encode(p), rank) for rank, p in enumerate(pieces) if p is not None)
    return {"name": name, "ranks_sha256": hashlib.sha256(b"".join(lines)).hexdigest(), "n_vocab": n_vocab}


def _piece(encoding: "tiktoken.Encoding", i: int) -> bytes | None:
    try:
        return encoding.decode_single_token_bytes(i)
    except KeyError:
        return None


@contextmanager
def _panic_is_said(name: str) -> Iterator[None]:
    """Turn tiktoken's failure on a text into a DataError; a panic is no Exception and has no public name."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException" and not str(error).startswith("Regex error"):
            raise
        raise DataError(
            f"data.tokenizer={name}: tiktoken cannot encode a text ({error}); it fails on about a million spaces in "
            "a row, so shorten such runs"
        ) from None


def _split(ids: Ids, offsets: Offsets) -> list[Ids]:
    return np.split(ids, offsets[1:-1]) if len(offsets) > 1 else []


def _borrowed(texts: Texts) -> Any:
    """Texts in the form that gigatoken reads without a copy."""
    import awkward

    content, offsets = flat(texts)
    characters = awkward.contents.NumpyArray(content, parameters={"__array__": "char"})
    starts, kind = awkward.index.Index64(offsets), {"__array__": "string"}
    return awkward.Array(awkward.contents.ListOffsetArray(starts, characters, parameters=kind))


def _gpt2_encoding() -> "tiktoken.Encoding":
    import tiktoken

    ranks = read_ranks(GPT2_RANKS, GPT2_RANKS_SHA256)
    return tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256})


def _tiktoken_encoding(name: str) -> "tiktoken.Encoding":
    import tiktoken

    known = ["gpt2", "bytes", *sorted(set(tiktoken.list_encoding_names()) - {"gpt2"})]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        raise DataError(f"data.tokenizer={name} is unknown; {hint}")
    try:
        return tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:
        raise DataError(
            f"data.tokenizer={name}: its ranks cannot be downloaded ({type(error).__name__}); "
            "gpt2 and bytes need no network, and TIKTOKEN_CACHE_DIR may name a folder that holds the ranks"
        ) from None

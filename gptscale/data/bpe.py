"""Byte-pair encodings: gigatoken as the engine, tiktoken as the judge. The home of both.

A document is always ordinary text here: `<|endoftext|>` written in it never becomes the special token.
"""

import difflib
import hashlib
import warnings
from binascii import a2b_base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gptscale.data.cuts import cuts_before_words
from gptscale.data.texts import Bytes, Offsets, Texts, excerpts_of, flat, join, list_texts, pieces
from gptscale.data.vocabulary import END_OF_TEXT, Ids, bytes_of, identity_of
from gptscale.errors import DataError

if TYPE_CHECKING:
    import tiktoken

GPT2_RANKS = Path(__file__).with_name("gpt2.tiktoken")
GPT2_RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
# How GPT-2 cuts text before merging (openai/gpt-2, src/encoder.py), possessive so that it never backtracks.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

_JUDGED_DOCUMENTS = 4  # of every few megabytes, in which gigatoken must agree with tiktoken
_JUDGED_BYTES = 1024  # at the start and in the middle of each


class BpeTokenizer:
    """A tiktoken encoding; where gigatoken reads its ranks too, batches are encoded by gigatoken."""

    def __init__(
        self,
        name: str,
        encoding: "tiktoken.Encoding",
        ranks_sha256: str | None = None,
        gigatoken_ranks: Path | None = None,
    ) -> None:
        self.name = name
        self._ranks_sha256 = ranks_sha256
        self.n_vocab = encoding.n_vocab
        self.end_of_text = encoding.eot_token
        self.pattern: str | None = encoding._pat_str
        """How text is cut before merging; None where it is not."""
        self.specials: dict[str, int] = dict(encoding._special_tokens)
        """The tokens that no text has."""
        self._judge = encoding
        self._gigatoken_ranks = gigatoken_ranks

    @cached_property
    def identity(self) -> dict[str, str | int]:
        """What decides the ids, as it stands in a corpus' manifest."""
        if self._ranks_sha256 is not None:
            return {"name": self.name, "ranks_sha256": self._ranks_sha256, "n_vocab": self.n_vocab}
        return identity_of(self.name, self._ordinary, self.n_vocab)

    @cached_property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of every token, (n_vocab,); 0 for end of text and for ids that no text has."""
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
            return list(self.encode_texts(list_texts([text]))[0].tolist())

    def encode_texts(self, texts: Texts) -> tuple[Ids, Offsets]:
        """The ids of many texts in one array, and where each text's begin, (n + 1,).

        They are gigatoken's if it agrees with tiktoken on excerpts of this batch. Warns when it does not; the batch is
        tiktoken's then. Either way the ids depend on the batch alone.
        """
        if self._gigatoken_ranks is None:
            return self._encode_slowly(texts)
        excerpts = excerpts_of(texts, _JUDGED_DOCUMENTS, _JUDGED_BYTES)
        ids, offsets = self._encode_fast(join([texts, excerpts]))
        judged, judged_borders = self._encode_slowly(excerpts)
        borders, end = offsets[len(texts) :], offsets[len(texts)]
        if np.array_equal(ids[end:], judged) and np.array_equal(borders - end, judged_borders):
            return ids[:end], offsets[: len(texts) + 1]
        warnings.warn("gigatoken and tiktoken disagree, so tiktoken encodes (slower)", stacklevel=2)
        return self._encode_slowly(texts)

    def cuts(self, content: Bytes, every: int) -> list[int]:
        """Places, about `every` bytes apart, at which a long text can be cut; for gpt2 only, whose pattern is known."""
        return cuts_before_words(content, every) if self.name == "gpt2" else []

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        return bytes_of(ids, self.pieces).decode(errors="replace")

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


def gpt2_bpe(engine: str) -> BpeTokenizer:
    """GPT-2's, from the ranks in this package. Raises DataError if they are damaged."""
    import tiktoken

    ranks = read_ranks(GPT2_RANKS, GPT2_RANKS_SHA256)
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256}
    )
    return BpeTokenizer("gpt2", encoding, GPT2_RANKS_SHA256, GPT2_RANKS if engine == "gigatoken" else None)


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


def tiktoken_bpe(name: str) -> BpeTokenizer:
    """One of tiktoken's own. Raises DataError for an unknown name, or ranks that cannot be downloaded."""
    import tiktoken

    known = ["gpt2", "bytes", *sorted(set(tiktoken.list_encoding_names()) - {"gpt2"})]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        raise DataError(f"data.tokenizer={name} is unknown; {hint}")
    try:
        return BpeTokenizer(name, tiktoken.get_encoding(name))
    except (OSError, ValueError) as error:
        raise DataError(
            f"data.tokenizer={name}: its ranks cannot be downloaded ({type(error).__name__}); "
            "gpt2 and bytes need no network, and TIKTOKEN_CACHE_DIR may name a folder that holds the ranks"
        ) from None


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


def _borrowed(texts: Texts) -> Any:
    """Texts in the form that gigatoken reads without a copy."""
    import awkward

    content, offsets = flat(texts)
    characters = awkward.contents.NumpyArray(content, parameters={"__array__": "char"})
    starts, kind = awkward.index.Index64(offsets), {"__array__": "string"}
    return awkward.Array(awkward.contents.ListOffsetArray(starts, characters, parameters=kind))

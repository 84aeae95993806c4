"""Tokenizers by name: GPT-2's, plain bytes, and tiktoken's other encodings."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gptscale.data.bpe import GPT2_RANKS_SHA256, gpt2_bpe, tiktoken_bpe
from gptscale.data.byte_tokenizer import ByteTokenizer
from gptscale.data.texts import Bytes, Offsets, Texts
from gptscale.data.vocabulary import Ids


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
        return gpt2_bpe(engine)
    return tiktoken_bpe(name)


def known_ranks(name: str) -> str | None:
    """The ranks_sha256 of bytes and gpt2, at no cost; None for a tokenizer that would have to be downloaded."""
    if name == "bytes":
        return str(ByteTokenizer().identity["ranks_sha256"])
    return GPT2_RANKS_SHA256 if name == "gpt2" else None

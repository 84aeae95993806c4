"""The tokenizer whose ids are the bytes of UTF-8."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gptscale.data.cuts import cuts_before_words
from gptscale.data.texts import Bytes, Offsets, Texts, flat, utf8
from gptscale.data.vocabulary import END_OF_TEXT, Ids, bytes_of, identity_of


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
        return identity_of(self.name, self.pieces[:256], self.n_vocab)

    @property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of every token, (n_vocab,)."""
        return np.array([1] * 256 + [0])

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without an end-of-text token."""
        return list(utf8(text))

    def encode_texts(self, texts: Texts) -> tuple[Ids, Offsets]:
        """The ids of many texts in one array, and where each text's begin, (n + 1,)."""
        content, offsets = flat(texts)
        return content.astype(np.uint32), offsets

    def cuts(self, content: Bytes, every: int) -> list[int]:
        """Places, about `every` bytes apart, at which a long text can be cut without a change of its ids."""
        return cuts_before_words(content, every)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        return bytes_of(ids, self.pieces).decode(errors="replace")

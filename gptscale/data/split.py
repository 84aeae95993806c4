"""The split of documents into training and validation text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Self

import numpy as np
import numpy.typing as npt

from gptscale.config.data import DataConfig
from gptscale.data.texts import Texts, choose, flat, join, list_texts, pieces, to_list
from gptscale.disk import seeded_hash


@dataclass(frozen=True)
class Documents:
    """Texts with the source's numbers of their documents, (n,)."""

    rows: npt.NDArray[np.int64]
    texts: Texts

    def where(self, mask: npt.NDArray[np.bool_]) -> Self:
        """Those of the documents that a mask, (n,), chooses."""
        return self if mask.all() else replace(self, rows=self.rows[mask], texts=choose(self.texts, mask))

    def filled(self) -> Self:
        """Those of the documents that have text."""
        _, offsets = flat(self.texts)
        return self.where(np.diff(offsets) > 0)


def joined(documents: Sequence[Documents]) -> Documents:
    """Documents one after another."""
    if len(documents) == 1:
        return documents[0]
    rows = np.concatenate([part.rows for part in documents])
    return Documents(rows, join([part.texts for part in documents]))


def split_documents(documents: Documents, cfg: DataConfig) -> tuple[Documents, Documents]:
    """What of the documents is training text, and what validation text; neither has empty ones."""
    if cfg.split == "tail":
        heads, tails = _cut(to_list(documents.texts), cfg.validation_fraction)
        return replace(documents, texts=heads).filled(), replace(documents, texts=tails).filled()
    documents = documents.filled()
    held = (is_held_out(piece, cfg.split_seed, cfg.validation_fraction) for piece in pieces(documents.texts))
    mask = np.fromiter(held, bool, len(documents.rows))
    return documents.where(~mask), documents.where(mask)


def is_held_out(utf8_text: bytes | memoryview, seed: int, fraction: float) -> bool:
    """Whether a document is validation: its XXH3 under the seed, as a number in [0, 1), is below the fraction.

    The text alone decides, so copies of a document lie on one side.
    """
    return seeded_hash(utf8_text, seed) < fraction * 2**64


def tail_cut(length: int, fraction: float) -> int:
    """Characters before the tail: length * (1 - fraction) rounded down, with fraction as its decimals say."""
    return int(length * (1 - Fraction(str(fraction))))


def _cut(texts: list[str], fraction: float) -> tuple[Texts, Texts]:
    cuts = [tail_cut(len(text), fraction) for text in texts]
    heads = [text[:cut] for text, cut in zip(texts, cuts, strict=True)]
    tails = [text[cut:] for text, cut in zip(texts, cuts, strict=True)]
    return list_texts(heads), list_texts(tails)

"""The split of documents into training and validation text."""

import hashlib
from fractions import Fraction

from gptscale.config.schema import DataConfig


def split_text(text: str, utf8_text: bytes, cfg: DataConfig) -> tuple[str, str]:
    """A document's training and validation text; either may be empty."""
    if cfg.split == "tail":
        cut = tail_cut(len(text), cfg.validation_fraction)
        return text[:cut], text[cut:]
    held_out = is_held_out(utf8_text, cfg.split_seed, cfg.validation_fraction)
    return ("", text) if held_out else (text, "")


def is_held_out(utf8_text: bytes, seed: int, fraction: float) -> bool:
    """Whether a document is validation: its hash under the seed, as a number in [0, 1), is below it.

    The text alone decides, so copies of a document lie on one side.
    """
    digest = hashlib.blake2b(utf8_text, digest_size=8, key=b"%d" % seed).digest()
    return int.from_bytes(digest) < fraction * 2**64


def tail_cut(length: int, fraction: float) -> int:
    """Characters before the tail: length * (1 - fraction) rounded down, with fraction as its decimals say."""
    return int(length * (1 - Fraction(str(fraction))))

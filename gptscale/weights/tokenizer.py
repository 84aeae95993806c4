"""Our tokenizers as the files that transformers' AutoTokenizer reads, written without it."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from gptscale.data.tokenizer import Tokenizer

PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
"""Bytes that stand for themselves in GPT-2's vocabulary; the others, in order, are characters from 256 on."""

_POSSESSIVE_COUNT = re.compile(r"(\\p\{\w+\}\{\d+,\d+\})\+")
"""Such as \\p{N}{1,3}+ in tiktoken's patterns, which Oniguruma, the reader of the export, takes as repeated."""


def write_tokenizer(folder: Path, tokenizer: Tokenizer, context_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    end = next(text for text, i in tokenizer.specials.items() if i == tokenizer.end_of_text)
    config = {
        "tokenizer_class": "GPT2Tokenizer" if tokenizer.name == "gpt2" else "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "bos_token": end,
        "eos_token": end,
        "unk_token": end,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    text = json.dumps(tokenizer_json(tokenizer), ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer in the form of the tokenizers library: byte-level BPE."""
    special = set(tokenizer.specials.values())
    ranked = {p: i for i, p in enumerate(tokenizer.pieces) if p is not None and i not in special}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    cut: dict[str, Any] = byte_level
    if tokenizer.name == "gpt2":
        cut = {**byte_level, "use_regex": True}  # the library's own pattern is GPT-2's
    elif tokenizer.pattern is not None:
        pattern = _POSSESSIVE_COUNT.sub(r"(?>\1)", tokenizer.pattern)
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        cut = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(text, i) for text, i in sorted(tokenizer.specials.items(), key=lambda s: s[1])],
        "normalizer": None,
        "pre_tokenizer": cut,
        "post_processor": {**byte_level, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {_spelled(piece): i for piece, i in ranked.items()},
            "merges": [[_spelled(a), _spelled(b)] for a, b in merges(ranked)],
        },
    }


def merges(ranked: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pairs whose joining makes each token of several bytes, in the order of their ranks.

    Ranks alone are enough: merging a token's bytes by the lower ranks ends with the two pieces it was made from.
    """
    found = []
    for piece, rank in sorted(ranked.items(), key=lambda item: item[1]):
        parts = _merged([piece[i : i + 1] for i in range(len(piece))], ranked, rank)
        if len(parts) == 2:
            found.append((parts[0], parts[1]))
    return found


def _merged(parts: list[bytes], ranked: dict[bytes, int], below: int) -> Sequence[bytes]:
    """Join neighbours, the lowest rank first, as long as there is one below a rank."""
    while len(parts) > 1:
        ranks = [ranked.get(a + b, below) for a, b in pairwise(parts)]
        lowest = min(ranks)
        if lowest >= below:
            break
        at = ranks.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _special(text: str, i: int) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": text, **plain, "special": True}


def _alphabet() -> list[str]:
    """The character that stands for each byte."""
    others = iter(range(256, 512))
    return [chr(byte) if byte in PRINTABLE else chr(next(others)) for byte in range(256)]


_ALPHABET = _alphabet()


def _spelled(piece: bytes) -> str:
    return "".join(_ALPHABET[byte] for byte in piece)

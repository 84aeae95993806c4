"""Tokenizers by name: GPT-2's, plain bytes, and tiktoken's other encodings."""

from gptscale.data.bpe import GPT2_RANKS_SHA256, BpeTokenizer, gpt2_bpe, tiktoken_bpe
from gptscale.data.byte_tokenizer import ByteTokenizer

Tokenizer = BpeTokenizer | ByteTokenizer
"""Text to token ids and back."""


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

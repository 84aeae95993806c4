"""GPT-2's ids, bytes, and the agreement of gigatoken with tiktoken."""

import argparse
import json
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiktoken

from gptscale.data import bpe
from gptscale.data.bpe import GPT2_RANKS, GPT2_RANKS_SHA256, BpeTokenizer
from gptscale.data.texts import list_texts, utf8
from gptscale.data.tokenizer import Tokenizer, known_ranks, load_tokenizer
from gptscale.data.vocabulary import identity_of
from gptscale.errors import DataError

ODD_TEXTS = [
    "",
    " ",
    "\n\n\n  x",
    "a" * 3000,
    "naïve café, 東京 and 🙂‍↔️",
    "I'm you'll they'VE 12345 ½ ٣",
    "tab\tcr\r\nnul\x00 nbsp\xa0 ls\u2028 bom\ufeff",
    "e\u0301 \u200d \U0010ffff",
    "<|endoftext|> and <|endoftext|>",
]


def batch_ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The ids of each of several texts that are encoded at once."""
    ids, offsets = tokenizer.encode_texts(list_texts(texts))
    return [ids[start:stop].tolist() for start, stop in pairwise(offsets)]


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return load_tokenizer("gpt2")


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, I am", [15496, 11, 314, 716]),
        ("Hello world", [15496, 995]),
        ("Every effort moves you", [6109, 3626, 6100, 345]),
        ("<|endoftext|>", [27, 91, 437, 1659, 5239, 91, 29]),
        ("", []),
    ],
)
def test_gpt2_gives_the_published_ids(gpt2: Tokenizer, text: str, ids: list[int]) -> None:
    assert gpt2.encode(text) == ids
    assert batch_ids(gpt2, [text])[0] == ids


def test_gpt2_has_50257_ids_and_the_last_is_end_of_text(gpt2: Tokenizer) -> None:
    assert (gpt2.n_vocab, gpt2.end_of_text) == (50257, 50256)
    assert gpt2.decode([50256]) == "<|endoftext|>"


def test_identity_is_json_and_its_hash_is_that_of_the_rank_file(gpt2: Tokenizer) -> None:
    expected = {"name": "gpt2", "ranks_sha256": GPT2_RANKS_SHA256, "n_vocab": 50257}
    assert json.loads(json.dumps(gpt2.identity)) == expected
    assert identity_of("gpt2", [*gpt2.pieces[:50256], None], 50257) == expected  # from the tokens themselves


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts_come_back_as_they_were(name: str, text: str) -> None:
    tokenizer = load_tokenizer(name)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(batch_ids(tokenizer, [text])[0]) == text


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_every_code_point_below_0x3000_comes_back(name: str) -> None:
    tokenizer = load_tokenizer(name)
    text = "".join(map(chr, range(0x3000)))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_half_a_surrogate_pair_becomes_the_replacement_character(name: str) -> None:
    tokenizer = load_tokenizer(name)
    expected = tokenizer.encode("a\ufffdb")
    assert tokenizer.encode("a\ud800b") == expected
    assert batch_ids(tokenizer, ["a\ud800b"])[0] == expected
    assert utf8("\ud83d\ude42") == "🙂".encode()  # two halves are one character


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_ids_outside_the_vocabulary_decode_to_the_replacement_character(name: str) -> None:
    tokenizer = load_tokenizer(name)
    assert tokenizer.decode([*tokenizer.encode("a"), 60000, -1, *tokenizer.encode("b")]) == "a\ufffd\ufffdb"


def test_bytes_that_are_no_utf8_decode_to_the_replacement_character() -> None:
    assert load_tokenizer("bytes").decode([0x61, 0xFF, 0x62]) == "a\ufffdb"


def test_bytes_are_their_own_ids() -> None:
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.encode("é!") == [0xC3, 0xA9, 0x21]
    assert (tokenizer.n_vocab, tokenizer.end_of_text, tokenizer.decode([256])) == (257, 256, "<|endoftext|>")


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_token_bytes_add_up_to_the_bytes_of_the_text(name: str) -> None:
    tokenizer = load_tokenizer(name)
    text = "".join(ODD_TEXTS)
    assert tokenizer.token_bytes[tokenizer.encode(text)].sum() == len(text.encode())
    assert tokenizer.token_bytes.shape == (tokenizer.n_vocab,)
    assert tokenizer.token_bytes[tokenizer.end_of_text] == 0


def test_gigatoken_and_tiktoken_agree_on_python_source_and_odd_texts(gpt2: Tokenizer) -> None:
    texts = [Path(argparse.__file__).read_text(encoding="utf-8"), *ODD_TEXTS]
    assert isinstance(gpt2, BpeTokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the fast path must be taken
        fast = batch_ids(gpt2, texts)
    assert fast == [gpt2.encode(text) for text in texts]
    assert batch_ids(gpt2, []) == []


def test_a_batch_on_which_gigatoken_is_wrong_is_encoded_by_tiktoken(
    gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(gpt2, BpeTokenizer)
    wrong = lambda texts: (np.ones(len(texts), np.uint32), np.arange(len(texts) + 1))  # noqa: E731
    monkeypatch.setattr(gpt2, "_encode_fast", wrong)
    with pytest.warns(UserWarning, match="gigatoken and tiktoken disagree, so tiktoken encodes"):
        assert batch_ids(gpt2, ["Hello world"]) == [[15496, 995]]


def test_tampered_ranks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(GPT2_RANKS.read_bytes())
    content[1000] ^= 1
    (tmp_path / "gpt2.tiktoken").write_bytes(content)
    monkeypatch.setattr(bpe, "GPT2_RANKS", tmp_path / "gpt2.tiktoken")
    with pytest.raises(DataError, match=r"gpt2.tiktoken is damaged: its SHA-256 is .*, not 306cd27f03c1"):
        load_tokenizer("gpt2")


def test_missing_ranks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "GPT2_RANKS", tmp_path / "gpt2.tiktoken")
    with pytest.raises(DataError, match=r"GPT-2's ranks cannot be read: .*gpt2.tiktoken'; install gptscale"):
        load_tokenizer("gpt2")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"data.tokenizer=gpt3 is unknown; did you mean gpt2\?"):
        load_tokenizer("gpt3")
    with pytest.raises(DataError, match=r"data.tokenizer=zzzzzz is unknown; known are gpt2, bytes, cl100k_base"):
        load_tokenizer("zzzzzz")


def test_ranks_that_cannot_be_downloaded_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    with pytest.raises(DataError, match=r"its ranks cannot be downloaded \(ConnectionError\); gpt2 and bytes"):
        load_tokenizer("cl100k_base")


def test_other_encodings_are_encoded_by_tiktoken_and_may_leave_ids_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks = {bytes([i]): i for i in range(256)} | {b"ab": 256}
    encoding = tiktoken.Encoding(
        "tiny", pat_str=r"\w+|\W+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 260}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    tiny = load_tokenizer("o200k_base")
    assert batch_ids(tiny, ["abc", "<|"]) == [[256, 99], [60, 124]]
    assert (tiny.n_vocab, tiny.end_of_text, tiny.identity["name"]) == (261, 260, "o200k_base")
    assert tiny.token_bytes[255:].tolist() == [1, 2, 0, 0, 0, 0]
    assert tiny.decode([256, 258]) == "ab\ufffd"


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_known_ranks_are_those_of_the_loaded_tokenizer(name: str) -> None:
    assert known_ranks(name) == load_tokenizer(name).identity["ranks_sha256"]
    assert known_ranks("cl100k_base") is None


def test_a_million_spaces_are_encoded_though_tiktoken_panics(gpt2: Tokenizer) -> None:
    # the pattern leaves the last space to the word, and no rank joins so many spaces: one id (220) each
    ids = gpt2.encode(" " * 1_000_000 + "x")
    assert ids == [220] * 999_999 + [2124]
    assert gpt2.decode([2124]) == " x"


def test_a_panic_of_tiktoken_alone_is_one_line(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(gpt2, BpeTokenizer)
    alone = BpeTokenizer("alone", gpt2._judge)
    match = r"data.tokenizer=alone: tiktoken cannot encode a text \(.*[Ss]tack.*\); it fails on about a million spaces"
    with pytest.raises(DataError, match=match):
        alone.encode(" " * 1_000_000 + "x")
    with pytest.raises(DataError, match=match):
        batch_ids(alone, [" " * 1_000_000 + "x"])


def test_other_failures_of_tiktoken_are_not_taken_for_panics(gpt2: Tokenizer) -> None:
    with pytest.raises(TypeError):
        gpt2.encode(1)  # type: ignore[arg-type]

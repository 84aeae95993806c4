"""Arrow's arrays become texts without nulls, of valid UTF-8, whatever was in them."""

import pyarrow as pa
import pytest

from gptscale.data import texts
from gptscale.data.texts import as_texts, flat, list_texts, pieces, to_list


def strings_of(*contents: bytes) -> pa.Array:
    """Strings that hold these bytes, valid UTF-8 or not, as a Parquet file can."""
    _, offsets, data = pa.array(contents, pa.binary()).buffers()
    return pa.StringArray.from_buffers(len(contents), offsets, data)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None, "é🙂"]),
        pa.array(["x", "a", None, "é🙂", "y"]).slice(1, 3),
        pa.chunked_array([["a", None], ["é🙂"]]),
        pa.array(["a", None, "é🙂"], pa.large_string()),
        pa.chunked_array([pa.array(["a", None, "é🙂"], pa.string_view())]),
        pa.array(["a", None, "é🙂"]).dictionary_encode(),
        pa.chunked_array([pa.array(["a", None]).dictionary_encode(), pa.array(["é🙂"]).dictionary_encode()]),
    ],
)
def test_every_layout_gives_the_same_texts(column: pa.Array) -> None:
    found = as_texts(column)
    assert to_list(found) == ["a", "", "é🙂"]
    assert flat(found)[1].tolist() == [0, 1, 1, 7]
    assert [bytes(piece) for piece in pieces(found.slice(1, 2))] == [b"", "é🙂".encode()]


def test_chunks_have_long_offsets_before_they_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = []  # short ones end at 2 GiB, which is too much for a test
    monkeypatch.setattr(texts, "join", lambda parts: joined.extend(part.type for part in parts) or parts[0])
    as_texts(pa.chunked_array([["a"], ["b"]], pa.string()))
    assert joined == [pa.large_string()] * 2


def test_nulls_alone_are_empty_texts_and_nothing_is_nothing() -> None:
    assert to_list(as_texts(pa.nulls(2))) == ["", ""]
    assert to_list(as_texts(pa.chunked_array([], pa.string()))) == []
    assert flat(list_texts([]))[1].tolist() == [0]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a\xed\xa0\x80b", "a\ufffdb"),  # half of a pair, encoded on its own
        (b"\xed\xa0\xbd\xed\xb9\x82", "🙂"),  # both halves, each encoded on its own (CESU-8)
        (b"a\xffb", "a\ufffdb"),
        (b"a\xe2\x82", "a\ufffd"),
    ],
)
def test_invalid_utf8_is_mended(content: bytes, text: str) -> None:
    assert to_list(as_texts(strings_of(b"ok", content, b""))) == ["ok", text, ""]


def test_half_of_a_surrogate_pair_becomes_the_replacement_character() -> None:
    assert to_list(list_texts(["a\ud800b", "\ud83d\ude42"])) == ["a\ufffdb", "🙂"]

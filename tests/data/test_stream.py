"""A stream reads like one array, wherever its shards end."""

import numpy as np
import pytest

from gptscale.data.stream import TokenStream

SHARDS = [np.arange(0, 5), np.arange(5, 5), np.arange(5, 6), np.arange(6, 20)]  # token i has the value i


@pytest.fixture
def stream() -> TokenStream:
    return TokenStream([shard.astype(np.uint16) for shard in SHARDS])


def test_length_is_the_sum_of_the_shards(stream: TokenStream) -> None:
    assert len(stream) == 20
    assert len(TokenStream([])) == 0


def test_every_stretch_reads_like_one_array(stream: TokenStream) -> None:
    for start in range(21):
        for count in range(21 - start):
            assert stream.read(start, count).tolist() == list(range(start, start + count))


@pytest.mark.parametrize("length", [1, 2, 5, 7, 20])
def test_every_window_reads_like_one_array(stream: TokenStream, length: int) -> None:
    starts = np.arange(20 - length + 1)[::-1]
    windows = stream.windows(starts, length)
    assert windows.tolist() == [list(range(s, s + length)) for s in starts]
    assert windows.dtype == np.uint16


def test_windows_of_one_shard_read_like_one_array(stream: TokenStream) -> None:
    assert stream.windows(np.array([8, 6, 15]), 5).tolist() == [[*range(s, s + 5)] for s in (8, 6, 15)]


def test_no_windows_are_an_empty_array(stream: TokenStream) -> None:
    assert stream.windows(np.empty(0, np.int64), 5).shape == (0, 5)


def test_large_ids_are_not_taken_for_negative_ones() -> None:
    stream = TokenStream([np.array([65535, 50256], np.uint16)])
    assert stream.read(0, 2).tolist() == [65535, 50256] == stream.windows(np.array([0]), 2)[0].tolist()


@pytest.mark.parametrize("start", [-1, -10, 16, 30])
def test_windows_outside_the_stream_are_our_mistake(stream: TokenStream, start: int) -> None:
    with pytest.raises(AssertionError):
        stream.windows(np.array([start]), 5)

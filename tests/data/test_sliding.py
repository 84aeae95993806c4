import numpy as np
import pytest

from gptscale.data.loader import IGNORE
from gptscale.data.sliding import sliding_batches, sliding_windows
from gptscale.data.stream import TokenStream


def stream(tokens: int) -> TokenStream:
    return TokenStream([np.arange(tokens, dtype=np.uint16)])


def test_overlapping_windows_predict_every_token_once() -> None:
    # 10 tokens, windows of 4 that lie 2 apart: targets 1-4, then 5-6, 7-8 and 9
    starts = sliding_windows(stream(10), 4, 2, None)
    assert starts.tolist() == [0, 2, 4, 6]
    (batch,) = sliding_batches(stream(10), starts, 4, 2, micro_batch=4)
    assert batch.targets.tolist() == [
        [1, 2, 3, 4],
        [IGNORE, IGNORE, 5, 6],
        [IGNORE, IGNORE, 7, 8],
        [IGNORE, IGNORE, 9, IGNORE],
    ]
    assert batch.inputs[1:3].tolist() == [[2, 3, 4, 5], [4, 5, 6, 7]]
    assert batch.inputs[3, :3].tolist() == [6, 7, 8]


@pytest.mark.parametrize("tokens", [2, 5, 9, 17, 33])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_no_length_leaves_a_token_out(tokens: int, stride: int) -> None:
    starts = sliding_windows(stream(tokens), 8, stride, None)
    found = [
        t
        for rank in range(2)
        for batch in sliding_batches(stream(tokens), starts, 8, stride, 2, rank, 2)
        for t in batch.targets.flatten().tolist()
        if t != IGNORE
    ]
    assert sorted(found) == list(range(1, tokens))


def test_some_of_the_windows_are_spread_evenly() -> None:
    assert sliding_windows(stream(10), 4, 2, 2).tolist() == [0, 4]


def test_a_stream_without_a_prediction_has_no_window() -> None:
    assert sliding_windows(stream(1), 4, 2, None).tolist() == []

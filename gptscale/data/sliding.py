"""Sliding windows: every token of a stream is predicted once, with much or little of its past in sight."""

from collections.abc import Iterator

import numpy as np
import torch

from gptscale.data.loader import IGNORE, MicroBatch, spread
from gptscale.data.sampler import Ints
from gptscale.data.stream import TokenStream


def sliding_windows(stream: TokenStream, context_length: int, stride: int, count: int | None) -> Ints:
    """The starts of windows that lie stride apart, up to count of them spread evenly; null takes all."""
    predicted = len(stream) - 1
    windows = 1 + max(0, -(-(predicted - context_length) // stride)) if predicted > 0 else 0
    return spread(windows, count, stride)


def sliding_batches(
    stream: TokenStream,
    starts: Ints,
    context_length: int,
    stride: int,
    micro_batch: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[MicroBatch]:
    """The windows at starts in micro-batches, one rank's share; every rank gets equally many, filled up.

    A window counts the last `stride` of its targets, the one at the stream's beginning counts all. So a token is
    predicted from context_length - stride + 1 tokens or more. What lies behind the stream's end is filling.
    """
    rounds = -(-len(starts) // (micro_batch * world))
    for number in range(rank, rounds * world, world):
        inputs = np.zeros((micro_batch, context_length), np.int64)
        targets = np.full_like(inputs, IGNORE)
        for row, start in enumerate(starts[number * micro_batch : (number + 1) * micro_batch].tolist()):
            tokens = stream.read(start, min(context_length + 1, len(stream) - start))
            seen = context_length - stride if start else 0
            inputs[row, : len(tokens) - 1] = tokens[:-1]
            targets[row, seen : len(tokens) - 1] = tokens[seen + 1 :]
        yield MicroBatch(torch.from_numpy(inputs), torch.from_numpy(targets), 0)

"""The loader: the micro-batches of every step, for any rank of any number of ranks."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from gptscale.data.buffers import Buffers
from gptscale.data.order import positions_of
from gptscale.data.sampler import Ints, MixedSampler, count_samples
from gptscale.data.shard import Tokens
from gptscale.data.stream import TokenStream

IGNORE = -100
"""The target that counts nothing in a loss (PyTorch's ignore_index)."""

_FOUND_AT_ONCE = 4096  # samples


@dataclass(frozen=True)
class MicroBatch:
    """Samples for one forward and backward on one rank; filling has zeros as inputs and IGNORE as targets."""

    inputs: torch.Tensor  # (B, T) int64
    targets: torch.Tensor  # (B, T) int64, the inputs' next tokens
    first_position: int
    """The position of the first sample: the same for every number of ranks."""


class StepLoader:
    """Hands out the micro-batches of one step after another to one rank, read ahead in a thread.

    A step is cut into micro-batches, the last one filled up. They go round the ranks, and a rank that would
    have one less than others gets one of filling only. position_shift counts the samples that were handed out
    beyond steps of this size, by earlier ones of another; skipped positions are left out. Close it, or use `with`.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        sampler: MixedSampler,
        context_length: int,
        sequences_per_step: int,
        micro_batch_sequences: int,
        rank: int,
        world: int,
        total_steps: int,
        first_step: int = 0,
        position_shift: int = 0,
        skipped: Sequence[int] = (),
        pin: bool = False,
        steps_ahead: int = 2,
    ) -> None:
        self.sampler = sampler
        self.sequences_per_step = sequences_per_step
        self._position_shift = position_shift
        self._skipped = tuple(skipped)
        self._windows = _Windows(stream, context_length, micro_batch_sequences, Buffers(pin))
        self._rank, self._world = rank, world
        self._found_from, self._found = 0, np.empty((0, sequences_per_step), np.int64)
        self._total_steps = total_steps
        self._steps = iter(range(first_step, total_steps))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ahead: deque[Future[list[MicroBatch]]] = deque()
        for _ in range(steps_ahead):
            self._read_another()

    def next_step(self) -> list[MicroBatch]:
        """This rank's micro-batches of the next step; every rank has equally many.

        Raises what reading them raised, and IndexError after the last step.
        """
        if not self._ahead:
            raise IndexError("the last step was handed out")
        step = self._ahead.popleft().result()
        self._read_another()
        return step

    def close(self) -> None:
        """Stop reading ahead."""
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read_another(self) -> None:
        step = next(self._steps, None)
        if step is not None:
            self._ahead.append(self._thread.submit(self._read_step, step))

    def _read_step(self, step: int) -> list[MicroBatch]:
        first = step * self.sequences_per_step + self._position_shift
        return self._windows.micro_batches(self._starts_of(step), first, self._rank, self._world)

    def _starts_of(self, step: int) -> Ints:
        """The first tokens of a step's samples, (sequences_per_step,).

        They are found for some steps ahead too, since numpy's calls take longer than the numbers of one step.
        """
        size = self.sequences_per_step
        if not self._found_from <= step < self._found_from + len(self._found):
            steps = min(self._total_steps - step, max(1, _FOUND_AT_ONCE // size))
            first = step * size + self._position_shift
            positions = positions_of(np.arange(first, first + steps * size), self._skipped)
            self._found_from, self._found = step, self.sampler.starts(positions).reshape(steps, size)
        starts: Ints = self._found[step - self._found_from]
        return starts


def evenly_spaced_windows(stream: TokenStream, context_length: int, count: int | None) -> Ints:
    """The starts of up to count fixed windows that do not overlap, spread evenly; null takes all."""
    return spread(count_samples(len(stream), context_length, context_length), count, context_length)


def spread(windows: int, count: int | None, stride: int) -> Ints:
    """The starts of up to count of so many windows that lie stride apart, spread evenly; null takes all."""
    taken = windows if count is None else min(count, windows)
    return np.arange(taken) * windows // max(taken, 1) * stride


def eval_batches(
    stream: TokenStream, starts: Ints, context_length: int, micro_batch: int, rank: int = 0, world: int = 1
) -> Iterator[MicroBatch]:
    """The windows at starts in micro-batches, one rank's share; every rank gets equally many, filled up."""
    windows = _Windows(stream, context_length, micro_batch, Buffers())
    together = micro_batch * world
    for first in range(0, len(starts), together):
        yield from windows.micro_batches(starts[first : first + together], first, rank, world)


@dataclass(frozen=True)
class _Windows:
    """Cuts micro-batches of a fixed shape from a stream."""

    stream: TokenStream
    context_length: int
    sequences: int
    buffers: Buffers

    def micro_batches(self, starts: Ints, first_position: int, rank: int, world: int) -> list[MicroBatch]:
        """A rank's micro-batches of the samples at starts, filled up; starts[0] has first_position.

        All are read in one piece: one look-up of the windows and one copy each for inputs and targets.
        """
        size = self.sequences
        numbers = np.arange(rank, -(-len(starts) // (size * world)) * world, world)
        rows = (numbers[:, None] * size + np.arange(size)).reshape(-1)  # of starts; those behind its end are filling
        windows = self.stream.windows(starts[rows[rows < len(starts)]], self.context_length + 1)
        inputs, targets = self.buffers.take(2, len(numbers), size, self.context_length)
        _widen(windows[:, :-1], inputs, 0)
        _widen(windows[:, 1:], targets, IGNORE)
        firsts = (first_position + numbers * size).tolist()
        return [MicroBatch(*batch) for batch in zip(inputs, targets, firsts, strict=True)]


def _widen(tokens: Tokens, out: torch.Tensor, filling: int) -> None:
    """Copy tokens, (n, T), into the first n of an int64 tensor's (M, B, T) rows; filling below."""
    rows = out.numpy().reshape(-1, out.shape[-1])
    rows[: len(tokens)] = tokens
    rows[len(tokens) :] = filling

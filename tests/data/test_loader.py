"""Every rank reads its share of a step, and all shares make the step, for any number of ranks."""

import queue
import threading
from typing import Any

import numpy as np
import pytest
import torch

from gptscale.data.loader import (
    IGNORE,
    MicroBatch,
    StepLoader,
    eval_batches,
    evenly_spaced_windows,
)
from gptscale.data.order import order
from gptscale.data.sampler import Sampler, count_samples
from gptscale.data.stream import TokenStream

# Token i has the value i, so a sample's first token says where it starts.
STREAM = TokenStream([np.arange(0, 30, dtype=np.uint16), np.arange(30, 58, dtype=np.uint16)])
SETTINGS: dict[str, Any] = {
    "context_length": 4, "sequences_per_step": 5, "micro_batch_sequences": 2,
    "sampler": Sampler(samples=18, stride=3, seed=7),
    "rank": 0, "world": 1, "total_steps": 9,
}  # fmt: skip
SAMPLES = 18  # starts 0, 3, ..., 51: the last one's target is token 55


def load(**settings: Any) -> list[list[MicroBatch]]:
    merged = {**SETTINGS, **settings}
    with StepLoader(STREAM, **merged) as loader:
        return [loader.next_step() for _ in range(merged.get("first_step", 0), merged["total_steps"])]


def rows(batches: list[MicroBatch]) -> list[int]:
    """The first tokens of the samples that count."""
    real = [batch.targets[:, 0] != IGNORE for batch in batches]
    return [int(x) for batch, mask in zip(batches, real, strict=True) for x in batch.inputs[mask, 0]]


@pytest.mark.parametrize(
    ("tokens", "context", "stride", "samples"),
    [
        (58, 4, 3, 18),
        (4, 4, 4, 0),
        (5, 4, 4, 1),
        (8, 4, 4, 1),
        (9, 4, 4, 2),
        (0, 4, 4, 0),
        (0, 1, 9, 0),
        (6, 4, 1, 2),
    ],
)
def test_samples_are_counted_by_their_starts(tokens: int, context: int, stride: int, samples: int) -> None:
    assert count_samples(tokens, context, stride) == samples
    assert samples == len([s for s in range(0, tokens, stride) if s + context + 1 <= tokens])


def test_targets_are_the_inputs_one_token_later() -> None:
    for batch in [batch for step in load() for batch in step]:
        real = batch.targets[:, 0] != IGNORE
        assert torch.equal(batch.targets[real], batch.inputs[real] + 1)
        assert batch.inputs.dtype == batch.targets.dtype == torch.int64
        assert batch.inputs.shape == batch.targets.shape == (2, 4)
        assert batch.inputs.is_contiguous()
        assert batch.targets.is_contiguous()


def test_steps_follow_the_order_across_epochs() -> None:
    # 9 steps of 5 are 45 samples: epoch 0, epoch 1 and the first 9 of epoch 2
    whole = np.concatenate([order(7, epoch, np.arange(SAMPLES), SAMPLES) for epoch in range(3)]) * 3
    assert [x for step in load() for x in rows(step)] == whole[:45].tolist()


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_all_ranks_together_read_the_step_of_one_rank(world: int) -> None:
    single = load()
    ranks = [load(rank=rank, world=world) for rank in range(world)]
    for step in range(9):
        shares = [rank[step] for rank in ranks]
        assert sorted(x for share in shares for x in rows(share)) == sorted(rows(single[step]))
        # 5 samples in micro-batches of 2 are 3 micro-batches
        assert {len(share) for share in shares} == {-(-3 // world)}


@pytest.mark.parametrize("block", [None, 1, 4, 7, 18, 100])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_every_sample_comes_once_in_an_epoch_from_every_resume_point(world: int, block: int | None) -> None:
    # 18 steps of 5 samples are 5 epochs of 18; steps are cut where a run stopped and went on
    sampler = Sampler(samples=SAMPLES, stride=3, seed=7, block=block)
    steps = [load(rank=rank, world=world, sampler=sampler, total_steps=18) for rank in range(world)]
    whole = in_order([step for rank in steps for step in rank])
    for epoch in range(5):
        assert sorted(whole[epoch * 18 : epoch * 18 + 18]) == list(range(0, 54, 3))
    for resumed in range(1, 18):
        before = in_order([step for rank in steps for step in rank[:resumed]])
        after = [load(rank=r, world=world, sampler=sampler, first_step=resumed, total_steps=18) for r in range(world)]
        assert before + in_order([step for rank in after for step in rank]) == whole


def in_order(steps: list[list[MicroBatch]]) -> list[int]:
    """The first tokens of all ranks' samples, by position."""
    found = {batch.first_position: rows([batch]) for step in steps for batch in step if rows([batch])}
    return [start for position in sorted(found) for start in found[position]]


def test_micro_batches_are_the_same_ones_for_any_number_of_ranks() -> None:
    single = {b.first_position: b for step in load() for b in step}
    for rank in range(2):
        for batch in [b for step in load(rank=rank, world=2) for b in step if rows([b])]:
            assert torch.equal(batch.inputs, single[batch.first_position].inputs)
            assert torch.equal(batch.targets, single[batch.first_position].targets)


def test_filling_has_zeros_and_ignored_targets() -> None:
    last = load(rank=1, world=2)[0][1]  # micro-batch 3 of 3: nothing but filling
    assert last.inputs.eq(0).all()
    assert last.targets.eq(IGNORE).all()
    third = load()[0][2]  # one sample, one filled
    assert third.inputs[1].tolist() == [0, 0, 0, 0]
    assert third.targets[1].tolist() == [IGNORE] * 4
    assert rows([third]) == [int(third.inputs[0, 0])]


def test_positions_count_the_samples_of_the_run() -> None:
    assert [b.first_position for step in load()[:2] for b in step] == [0, 2, 4, 5, 7, 9]


def test_seeking_gives_the_steps_that_would_have_come() -> None:
    assert [rows(step) for step in load(first_step=6)] == [rows(step) for step in load()[6:]]


@pytest.mark.parametrize(("world", "accumulation"), [(1, 3), (2, 2), (3, 1), (8, 1)])
def test_micro_batches_per_step_is_what_a_step_holds(world: int, accumulation: int) -> None:
    with StepLoader(STREAM, **{**SETTINGS, "world": world}) as loader:
        assert len(loader.next_step()) == accumulation


def test_after_the_last_step_there_is_none() -> None:
    with (
        StepLoader(STREAM, **{**SETTINGS, "first_step": 9}) as loader,
        pytest.raises(IndexError, match="last step"),
    ):
        loader.next_step()


def test_a_failure_while_reading_ahead_is_raised_by_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(starts: object, length: int) -> None:
        raise OSError("stale file handle")

    stream = TokenStream([np.arange(58, dtype=np.uint16)])
    monkeypatch.setattr(stream, "windows", broken)
    with StepLoader(stream, **SETTINGS) as loader, pytest.raises(OSError, match="stale file handle"):
        loader.next_step()


def test_steps_are_read_in_a_thread_before_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, read = TokenStream(STREAM.shards), queue.Queue[str]()
    whole = stream.windows

    def watched(starts: Any, length: int) -> Any:
        read.put(threading.current_thread().name)
        return whole(starts, length)

    monkeypatch.setattr(stream, "windows", watched)
    with StepLoader(stream, **SETTINGS, steps_ahead=3) as loader:
        readers = {read.get(timeout=60) for _ in range(3)}  # nobody has asked yet
        assert all(name.startswith("loader") for name in readers)
        assert rows(loader.next_step()) == rows(load()[0])


def test_reading_ahead_is_bounded() -> None:
    with StepLoader(STREAM, **{**SETTINGS, "total_steps": 10**9}, steps_ahead=3) as loader:
        loader.next_step()
        assert len(loader._ahead) == 3


def test_batches_keep_their_tokens_for_as_long_as_anybody_holds_them() -> None:
    expected = [[batch.inputs.tolist() for batch in step] for step in load(total_steps=40)]
    with StepLoader(STREAM, **{**SETTINGS, "total_steps": 40}) as loader:
        held, views = [], []
        for number in range(40):
            step = loader.next_step()
            if number % 3 == 0:
                held.append((number, step))
            views.append(step[1].inputs[1:])
        assert [view.tolist() for view in views] == [step[1][1:] for step in expected]
        for number, step in held:
            assert [batch.inputs.tolist() for batch in step] == expected[number]
            assert all(torch.equal(b.targets[:, :3], b.inputs[:, 1:]) for b in step[:2])


def test_memory_does_not_grow_with_the_steps() -> None:
    places = set()
    with StepLoader(STREAM, **{**SETTINGS, "total_steps": 200}, steps_ahead=2) as loader:
        for _ in range(200):
            places.add(loader.next_step()[0].inputs.data_ptr())
    assert len(places) <= 4  # one in use, two read ahead, one that is being read


def test_a_sampler_names_the_tokens_of_any_position() -> None:
    found = Sampler(samples=SAMPLES, stride=3, seed=7).starts(np.array([0, 40, 18]))
    expected = [order(7, epoch, within, SAMPLES) * 3 for epoch, within in [(0, 0), (2, 4), (1, 0)]]
    assert found.tolist() == [int(x) for x in expected]


@pytest.mark.parametrize(
    ("count", "starts"),
    [
        (None, list(range(0, 56, 4))),  # 58 tokens: 14 windows of 4 + 1, the last from 52 to 56
        (100, list(range(0, 56, 4))),
        (14, list(range(0, 56, 4))),
        (3, [0, 16, 36]),  # windows 0, 14/3 and 28/3, rounded down
        (1, [0]),
    ],
)
def test_evaluation_windows_are_spread_evenly(count: int | None, starts: list[int]) -> None:
    assert evenly_spaced_windows(STREAM, 4, count).tolist() == starts


def test_a_stream_too_short_for_a_window_has_none() -> None:
    short = TokenStream([np.arange(4, dtype=np.uint16)])
    assert evenly_spaced_windows(short, 4, None).tolist() == []
    assert list(eval_batches(short, evenly_spaced_windows(short, 4, 8), 4, 2)) == []


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_share_the_evaluation_windows_and_do_equally_many_batches(world: int) -> None:
    starts = evenly_spaced_windows(STREAM, 4, 5)
    shares = [list(eval_batches(STREAM, starts, 4, 2, rank, world)) for rank in range(world)]
    assert sorted(x for share in shares for x in rows(share)) == starts.tolist()
    assert {len(share) for share in shares} == {-(-3 // world)}

"""The figures of a record, from a clock that is set by hand: two ranks of 640 tokens a step, 100 FLOPs a token."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptscale.training import meter
from gptscale.training.meter import Meter
from gptscale.training.step import StepResult


class Clock:
    """Seconds that pass when it is told."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    @contextmanager
    def passing(self, seconds: float) -> Iterator[None]:
        yield
        self.now += seconds


class Mark:
    """A CUDA event at which the device arrives at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def record(self) -> None:
        self.at = self._clock.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "Mark") -> float:
        return 1000 * (end.at - self.at)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter.time, "perf_counter", clock)
    monkeypatch.setattr(meter, "synchronize", lambda device: None)
    monkeypatch.setattr(meter, "peak_memory_bytes", lambda device: 12_345)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Mark(clock))
    return clock


def made(
    device: str = "cpu",
    scale: dict[str, Any] | None = None,
    clip_norm: float | None = 1.0,
    other: tuple[float, float, float] = (0, 0, 0),
) -> Meter:
    """A meter of rank 0 of two, whose other rank has the same losses; a device does 25,600 FLOPs a second.

    The other rank waited for data, computed and needed memory as given.
    """
    engine: Any = SimpleNamespace(
        device=SimpleNamespace(type=device),
        sum_over_ranks=lambda tensor: 2 * tensor,
        each_rank=lambda *mine: [[x, y] for x, y in zip(mine, other, strict=True)],
        scaler_state=lambda: scale or {},
    )
    plan: Any = SimpleNamespace(world=2, tokens_per_step=640)
    return Meter(engine, plan, flops_per_token=100, peak_flops=25_600, clip_norm=clip_norm)


def step(
    meter: Meter, clock: Clock, norm: float = 1.0, loss: float = 1.0, seconds: tuple[float, ...] = (1, 3, 1)
) -> None:
    """A step that waits for data, computes and does the rest for so many seconds."""
    data, compute, rest = seconds
    with meter.waiting(), clock.passing(data):
        pass
    with meter.computing(), clock.passing(compute):
        pass
    meter.add(StepResult(torch.tensor(loss), torch.tensor(norm)))
    clock.now += rest


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_speed_and_time_are_those_of_the_interval(clock: Clock, device: str) -> None:
    meter = made(device)
    step(meter, clock, seconds=(1, 3, 1))
    step(meter, clock, seconds=(2, 2, 1))
    record = meter.read(lr=0.5)
    assert record["train/tokens_per_s"] == 128  # 2 x 640 tokens in 10 s
    assert record["train/tokens_per_s_per_gpu"] == 64
    assert record["train/mfu"] == 0.25  # 12,800 of 2 x 25,600 FLOP/s
    assert (record["time/data_s"], record["time/compute_s"], record["time/rest_s"]) == (1.5, 2.5, 1)
    assert record["memory/peak_bytes"] == 12_345
    assert record["train/lr"] == 0.5
    assert meter.total_s == 10
    step(meter, clock, seconds=(0, 4, 0))  # the next interval begins anew
    assert meter.read(lr=0.5)["train/tokens_per_s"] == 160


def test_what_an_interval_waited_for_is_not_counted_in_the_next(clock: Clock) -> None:
    meter = made()
    step(meter, clock, seconds=(2, 3, 0))
    assert meter.read(lr=0.5)["time/data_s"] == 2
    step(meter, clock, seconds=(0, 3, 2))
    record = meter.read(lr=0.5)
    assert (record["time/data_s"], record["time/compute_s"], record["time/rest_s"]) == (0, 3, 2)


def test_times_are_those_of_the_rank_that_waited_longest_and_memory_is_the_most(clock: Clock) -> None:
    meter = made(other=(6, 2, 54_321))
    step(meter, clock, seconds=(1, 8, 1))  # computing took longer here, since it waited for the other rank
    step(meter, clock, seconds=(0, 0, 0))
    record = meter.read(lr=0.5)
    assert (record["time/data_s"], record["time/compute_s"], record["time/rest_s"]) == (3, 1, 1)
    assert record["time/data_rank"] == 1
    assert record["memory/peak_bytes"] == 54_321


def test_waiting_for_data_while_the_device_computes_is_no_loss(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = iter([Mark(Clock(0)), Mark(Clock(6))])
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: next(marks))
    meter_of_cuda = made("cuda")
    step(meter_of_cuda, clock, seconds=(5, 0, 3))  # 8 s, in which the device computed for 6
    record = meter_of_cuda.read(lr=0.5)
    assert (record["time/data_s"], record["time/compute_s"], record["time/rest_s"]) == (2, 6, 0)


def test_losses_are_summed_over_ranks_and_norms_counted_once(clock: Clock) -> None:
    meter = made(scale={"scale": 1024.0, "steps": 3})
    for loss, norm in ((1.0, 0.5), (1.25, 1.0), (1.5, 4.0), (2.25, 2.5)):
        step(meter, clock, norm, loss)
    record = meter.read(lr=0.5)
    assert record["train/loss"] == 3  # twice (1 + 1.25 + 1.5 + 2.25) / 4
    assert record["train/perplexity"] == math.exp(3)
    assert record["train/grad_norm"] == 2.5
    assert record["train/grad_norm_mean"] == 2
    assert record["train/clipped_share"] == 0.5  # a norm of exactly 1 is not clipped
    assert record["train/loss_scale"] == 1024


def test_a_loss_whose_perplexity_is_no_number_of_python_ends_no_run(clock: Clock) -> None:
    meter = made()
    step(meter, clock, loss=500.0)  # and as much on the other rank: exp(1000) is over the largest double, exp(709.78)
    assert 1e304 < meter.read(lr=0.5)["train/perplexity"] < math.inf


def test_the_clock_is_read_when_the_device_is_done(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = made()
    step(meter, clock, seconds=(0, 1, 0))

    def wait(device: Any) -> None:
        clock.now += 4  # for what the host has only begun

    monkeypatch.setattr("gptscale.training.meter.synchronize", wait)
    assert meter.read(lr=0.5)["train/tokens_per_s"] == 128  # 640 tokens in 5 s


def test_without_clipping_and_fp16_there_is_no_word_of_them(clock: Clock) -> None:
    meter = made(clip_norm=None)
    step(meter, clock)
    assert not {"train/clipped_share", "train/loss_scale"} & meter.read(lr=0.5).keys()


def test_a_skipped_step_counts_for_its_time_alone(clock: Clock) -> None:
    meter = made()
    step(meter, clock, 2.0, 1.0)
    step(meter, clock, math.inf, math.nan)
    assert meter.fetch()[1] == [True, False]
    record = meter.read(lr=0.5)
    assert (record["train/loss"], record["train/grad_norm_mean"], record["train/clipped_share"]) == (2, 2, 1)
    assert record["train/grad_norm"] == math.inf
    assert record["train/tokens_per_s"] == 128
    step(meter, clock, math.nan)
    assert math.isnan(meter.read(lr=0.5)["train/loss"])  # a gap, if there was no other


def test_evaluations_and_checkpoints_take_no_time_of_training(clock: Clock) -> None:
    meter = made()
    step(meter, clock)
    with meter.paused(), clock.passing(1000):
        pass
    step(meter, clock)
    assert meter.read(lr=0.5)["train/tokens_per_s"] == 128
    assert meter.total_s == 10


def test_an_interval_that_a_stop_cut_in_two_has_the_means_of_the_whole(clock: Clock) -> None:
    before = made()
    step(before, clock, 3.0, 1.0)
    before._stop_clock()
    after = made()
    after.restore(before.interval(), before.total_s)
    step(after, clock, 5.0, 2.0, seconds=(0, 10, 0))
    record = after.read(lr=0.5)
    assert (record["train/loss"], record["train/grad_norm_mean"]) == (3, 4)
    assert record["train/tokens_per_s"] == 64  # of this start's step alone
    assert after.total_s == 5 + 10


def test_what_a_checkpoint_took_does_not_go_on_with_the_interval(clock: Clock) -> None:
    meter = made()
    step(meter, clock, 3.0, 1.0)
    taken = meter.interval()
    step(meter, clock, 5.0, 2.0)
    meter.fetch()  # while the checkpoint is still on its way to the disk
    assert taken == {"losses": [2.0], "norms": [3.0]}


def test_what_comes_before_the_start_is_no_training(clock: Clock) -> None:
    meter = made()
    clock.now += 1000
    meter.start()
    step(meter, clock)
    assert meter.read(lr=0.5)["train/tokens_per_s"] == 128
    assert meter.total_s == 5

"""Spikes and skipped steps, judged from numbers alone; and a run that rolls back."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptscale.checkpoint.layout import list_checkpoints, read_manifest, step_dir
from gptscale.config.load import parse_config
from gptscale.config.watching import HealthConfig
from gptscale.data.corpus import open_corpus
from gptscale.data.order import positions_of
from gptscale.data.prepare import prepare
from gptscale.data.sampler import Sampler, count_samples
from gptscale.errors import TrainingError
from gptscale.runtime.engine import Engine
from gptscale.tracking.jsonl import JsonlSink, read_log
from gptscale.tracking.provenance import recorded_starts
from gptscale.training import loop
from gptscale.training.deadline import Deadline
from gptscale.training.health import Health
from gptscale.training.plan import make_plan
from gptscale.training.run import train
from gptscale.training.state import TrainState
from gptscale.training.trace import trace_step
from tests.conftest import small_values


def test_a_loss_is_judged_by_median_and_median_deviation() -> None:
    state = TrainState(recent_losses=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    # median 4.5, deviations 0.5, 0.5, 1.5, 1.5, 2.5, 2.5, 3.5, 3.5, their median 2: z = (x - 4.5) / 2.9652
    skipped, spikes = Health(HealthConfig(spike_window=8), state).judge(1, [4.5 + 8.1 * 2.9652], [True])
    assert skipped == 0
    assert [(s.step, round(s.z, 6)) for s in spikes] == [(1, 8.1)]
    assert state.recent_losses[:2] == [2.0, 3.0]


def test_nothing_is_a_spike_before_there_is_something_to_compare_with() -> None:
    health = Health(HealthConfig(spike_window=16), TrainState())
    assert health.judge(1, [1.0, 1.0, 1.0, 50.0, 1.0, 50.0], [True] * 6)[1][0].step == 6


def test_a_loss_that_stands_still_has_no_spikes_in_its_noise() -> None:
    health = Health(HealthConfig(spike_window=8), TrainState(recent_losses=[3.0] * 8))
    assert health.judge(1, [3.2], [True])[1] == []  # 0.2 is below 8 times one hundredth of 3


def test_a_loss_far_below_the_others_is_no_spike() -> None:
    health = Health(HealthConfig(spike_window=8), TrainState(recent_losses=[3.0] * 8))
    assert health.judge(1, [0.1], [True])[1] == []  # 2.9 is 97 times one hundredth of 3


def test_losses_that_are_all_zero_are_judged_as_well() -> None:
    health = Health(HealthConfig(spike_window=8), TrainState(recent_losses=[0.0] * 8))
    assert [spike.step for spike in health.judge(1, [0.0, 0.1], [True, True])[1]] == [2]


def test_a_loss_that_was_skipped_or_is_no_number_is_neither_a_spike_nor_compared_with() -> None:
    state = TrainState(recent_losses=[3.0] * 8)
    health = Health(HealthConfig(spike_window=8), state)
    skipped, spikes = health.judge(1, [50.0, math.nan, math.nan, 9.0], [False, False, True, True])
    assert (skipped, [spike.step for spike in spikes]) == (2, [4])
    assert state.recent_losses == [*[3.0] * 7, 9.0]


@pytest.mark.parametrize(("done", "more"), [(0, True), (1, True), (2, False), (3, False)])
def test_a_run_goes_back_as_often_as_it_may_and_no_more(tmp_path: Path, done: int, more: bool) -> None:
    settings = HealthConfig(rollback=True, max_rollbacks=2, spike_window=8)
    health = Health(settings, TrainState(step=12, rollbacks=done, recent_losses=[3.0] * 8))
    _, spikes = health.judge(13, [9.0], [True])
    assert len(spikes) == 1
    rollback = health.rollback(spikes, make_plan(parse_config(small_values(tmp_path)), 1000, world=1))
    assert (rollback is not None) == more
    if rollback is not None:
        assert rollback.positions == list(range(88, 104))  # steps 12 and 13, of 8 samples each


def test_a_step_is_judged_once() -> None:
    health = Health(HealthConfig(spike_window=8), TrainState(recent_losses=[3.0] * 8))
    assert len(health.judge(1, [9.0], [True])[1]) == 1
    skipped, spikes = health.judge(1, [9.0, math.nan], [True, False])
    assert (skipped, spikes) == (1, [])


def test_too_many_skips_in_a_row_end_the_run_and_others_do_not() -> None:
    state = TrainState()
    health = Health(HealthConfig(stop_after_skips=3), state)
    health.judge(1, [math.nan] * 5, [False, False, True, False, False])
    assert state.skips_in_a_row == 2
    with pytest.raises(
        TrainingError, match=r"the updates of 3 steps in a row, up to step 6, were not finite; none rea"
    ):
        health.judge(6, [math.nan], [False])


@pytest.mark.parametrize("skipped", [[], [0], [3], [2, 3, 4], [9, 0, 5], [4, 4, 20]])
def test_skipped_positions_are_never_handed_out_and_all_others_are_in_order(skipped: list[int]) -> None:
    expected = [p for p in range(40) if p not in skipped][:20]
    assert positions_of(np.arange(20), skipped).tolist() == expected
    assert positions_of(np.arange(7, 12), skipped).tolist() == expected[7:12]


@pytest.fixture
def poisoned() -> set[int]:
    """The steps whose first samples are bad ones; a test may add to it."""
    return {13}


@pytest.fixture
def spiking(poisoned: set[int], monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Makes the samples of the poisoned steps bad ones, whenever they come; gives all that training read."""
    read: list[torch.Tensor] = []
    bad: list[torch.Tensor] = []
    train_step = loop.train_step

    def step(engine: Any, plan: Any, batches: Any, *, step: int, **rest: Any) -> Any:
        rows = torch.cat([batch.inputs for batch in batches])
        read.append(rows)
        if step + 1 in poisoned:
            poisoned.remove(step + 1)
            bad.extend(rows)
        result = train_step(engine, plan, batches, step=step, **rest)
        spike = any(torch.equal(row, other) for row in rows for other in bad)
        return replace(result, loss=result.loss * 3) if spike else result

    monkeypatch.setattr(loop, "train_step", step)
    return read


def run_values(values: dict[str, Any], **health: Any) -> dict[str, Any]:
    """A run on text in which no two samples are the same."""
    folder = Path(values["data"]["dir"]).parent
    letters = np.random.default_rng(0).choice(list("abcdefgh "), 20_000)
    (folder / "random.txt").write_text("".join(letters))
    values["data"] |= {"dir": str(folder / "random"), "source": {"path": str(folder / "random.txt")}}
    prepare(parse_config(values), say=lambda line: None)
    values["sample"]["prompts"] = []
    values["checkpoint"] = {"every_steps": 5, "keep": None}
    values["health"] = {"spike_window": 8, **health}
    return values


@pytest.mark.parametrize("log_every_steps", [1, 4, 20])
def test_a_spike_rolls_back_and_its_samples_never_come_again(
    values: dict[str, Any], spiking: list[torch.Tensor], log_every_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[bool] = []
    close = JsonlSink.close

    def noted(sink: JsonlSink, failed: bool = False) -> None:
        ends.append(failed)
        close(sink, failed)

    monkeypatch.setattr(JsonlSink, "close", noted)
    run_values(values, rollback=True)["train"]["log_every_steps"] = log_every_steps
    cfg = parse_config(values)
    assert train(cfg)
    assert len(recorded_starts(cfg.run.dir)) == 1  # going back is no start
    assert ends == [False, False]  # what watches a run hears of no failure, neither at the rollback nor at the end
    records = read_log(cfg.run.dir / "log.jsonl")
    steps = [r["step"] for r in records if "train/loss" in r]
    assert steps == sorted(set(steps))
    (told,) = [r for r in records if "health/spike_step" in r]
    assert (told["step"], told["health/spike_step"], told["health/skipped_samples"]) == (10, 13, 16)
    # steps of 8 samples: step 12 began at position 88, step 13 ended at 103
    for step in (10, 15, 20):
        assert read_manifest(step_dir(cfg.run.dir, step)).ledger["skipped_windows"] == list(range(88, 104))
    assert read_manifest(step_dir(cfg.run.dir, 5)).ledger["skipped_windows"] == []

    spiking.clear()
    assert train(parse_config({**values, "train": {**values["train"], "steps": 22}}))  # goes on from step 20
    stream = open_corpus(cfg.data.dir).train
    sampler = Sampler(count_samples(len(stream), 32, 32), 32, 11)
    expected = stream.windows(sampler.starts(np.arange(20 * 8 + 16, 22 * 8 + 16)), 32)
    assert torch.equal(torch.cat(spiking), torch.from_numpy(expected.astype(np.int64)))
    assert [s.position for s in trace_step(cfg.run.dir, 12)] == list(range(104, 112))
    assert [s.position for s in trace_step(cfg.run.dir, 11)] == list(range(80, 88))


def test_a_spike_right_after_a_checkpoint_leaves_out_only_what_was_not_read(
    values: dict[str, Any], spiking: list[torch.Tensor]
) -> None:
    run_values(values, rollback=True)["checkpoint"]["every_steps"] = 12
    cfg = parse_config(values)
    assert train(cfg)
    # steps of 8 samples: step 13, the spike, is 96 to 103; step 12 may have done the harm, but the checkpoint has it
    (told,) = [r for r in read_log(cfg.run.dir / "log.jsonl") if "health/spike_step" in r]
    assert (told["step"], told["health/skipped_samples"]) == (12, 8)
    assert read_manifest(step_dir(cfg.run.dir, 12)).ledger["skipped_windows"] == list(range(96, 104))
    assert [s.position for s in trace_step(cfg.run.dir, 12)] == list(range(88, 96))
    assert [s.position for s in trace_step(cfg.run.dir, 13)] == list(range(104, 112))


def test_what_was_left_out_before_counts_in_what_a_later_checkpoint_has_read(
    values: dict[str, Any], spiking: list[torch.Tensor], poisoned: set[int]
) -> None:
    poisoned.add(25)
    run_values(values, rollback=True)["checkpoint"]["every_steps"] = 12
    values["train"]["steps"] = 25
    cfg = parse_config(values)
    assert train(cfg)
    # the first rollback as above; then step 24 ends at position 24 * 8 + 8 - 1 = 199, and its checkpoint has it
    left_out = [*range(96, 104), *range(200, 208)]
    assert read_manifest(step_dir(cfg.run.dir, 24)).ledger["skipped_windows"] == left_out
    assert [s.position for s in trace_step(cfg.run.dir, 24)] == list(range(192, 200))


def test_a_second_rollback_leaves_out_the_samples_of_the_first_as_well(
    values: dict[str, Any], spiking: list[torch.Tensor], poisoned: set[int]
) -> None:
    poisoned.add(18)
    cfg = parse_config(run_values(values, rollback=True))
    assert train(cfg)
    # steps of 8 samples: 12 and 13 began at position 88; 17 and 18, handed out 128 to 143, are 16 further on by then
    ledgers = {step: read_manifest(step_dir(cfg.run.dir, step)).ledger for step in (10, 15, 20)}
    first, second = list(range(88, 104)), list(range(144, 160))
    assert {step: ledger["skipped_windows"] for step, ledger in ledgers.items()} == {
        10: first,
        15: first + second,
        20: first + second,
    }
    assert {step: ledger["rollbacks"] for step, ledger in ledgers.items()} == {10: 1, 15: 2, 20: 2}


def test_a_run_that_has_gone_back_often_enough_only_records_its_spikes(
    values: dict[str, Any], spiking: list[torch.Tensor], poisoned: set[int]
) -> None:
    poisoned.add(18)
    cfg = parse_config(run_values(values, rollback=True, max_rollbacks=1))
    assert train(cfg)
    told = [r for r in read_log(cfg.run.dir / "log.jsonl") if "health/spike_step" in r]
    assert [(r["step"], r["health/spike_step"], "health/skipped_samples" in r) for r in told] == [
        (10, 13, True),
        (18, 18, False),
    ]
    assert read_manifest(step_dir(cfg.run.dir, 20)).ledger["rollbacks"] == 1


def test_a_spike_is_only_recorded_if_nothing_else_is_asked(values: dict[str, Any], spiking: list[torch.Tensor]) -> None:
    cfg = parse_config(run_values(values))
    assert train(cfg)
    told = [r for r in read_log(cfg.run.dir / "log.jsonl") if "health/spike_step" in r]
    assert [(r["step"], r["health/spike_step"], r["health/spikes"]) for r in told] == [(13, 13, 1)]
    assert read_manifest(list_checkpoints(cfg.run.dir)[0]).ledger["skipped_windows"] == []
    assert len(spiking) == 20


def test_a_run_of_bad_steps_stops_with_a_checkpoint_from_before(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptscale.runtime.engine import Engine

    calls, backward = 0, Engine.backward

    def faulty(engine: Engine, loss: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        backward(engine, loss * (math.nan if calls > 24 else 1))  # two a step: bad from step 13 on

    monkeypatch.setattr(Engine, "backward", faulty)
    cfg = parse_config(run_values(values, stop_after_skips=5))
    with pytest.raises(TrainingError, match=r"the updates of 5 steps in a row, up to step 17, were not finite"):
        train(cfg)
    assert [read_manifest(p).step for p in list_checkpoints(cfg.run.dir)] == [10, 5]  # none at 15
    told = [r["health/skipped_steps"] for r in read_log(Path(cfg.run.dir) / "log.jsonl") if "train/lr" in r]
    assert told == [0] * 12 + [1] * 4


def test_the_way_back_of_a_rollback_is_no_step_to_the_deadline(
    values: dict[str, Any], spiking: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[int] = []
    pause = Deadline.pause

    def noted(deadline: Deadline) -> None:
        paused.append(len(spiking))
        pause(deadline)

    monkeypatch.setattr(Deadline, "pause", noted)
    assert train(parse_config(run_values(values, rollback=True)))
    assert paused == [0, 13]  # at the start, and after the step whose loss was the spike


def test_the_worst_of_several_spikes_is_told(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    train_step = loop.train_step

    def step(*args: Any, step: int, **rest: Any) -> Any:
        result = train_step(*args, step=step, **rest)
        return replace(result, loss=result.loss * {12: 30, 13: 90, 14: 40}.get(step + 1, 1))

    monkeypatch.setattr(loop, "train_step", step)
    run_values(values)["train"] |= {"steps": 16, "log_every_steps": 16}
    values["checkpoint"]["every_steps"] = 16
    cfg = parse_config(values)
    assert train(cfg)
    (told,) = [r for r in read_log(cfg.run.dir / "log.jsonl") if "health/spike_step" in r]
    assert (told["health/spikes"], told["health/spike_step"]) == (3, 13)


def test_a_spike_before_the_first_checkpoint_is_only_recorded(
    values: dict[str, Any], spiking: list[torch.Tensor]
) -> None:
    run_values(values, rollback=True)["checkpoint"]["every_steps"] = 20
    cfg = parse_config(values)
    assert train(cfg)
    told = [r for r in read_log(cfg.run.dir / "log.jsonl") if "health/spike_step" in r]
    assert [(r["step"], r["health/spike_step"], "health/skipped_samples" in r) for r in told] == [(13, 13, False)]


def nan_at(steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    backward, train_step, now = Engine.backward, loop.train_step, [0]

    def noted(*args: Any, step: int, **options: Any) -> Any:
        now[0] = step + 1
        return train_step(*args, step=step, **options)

    monkeypatch.setattr(loop, "train_step", noted)
    monkeypatch.setattr(Engine, "backward", lambda e, loss: backward(e, loss * (math.nan if now[0] in steps else 1)))


def test_a_checkpoint_that_waits_for_a_sound_step_comes_with_it_and_the_last_one_does_not_wait(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    nan_at({4, 5, 9}, monkeypatch)
    values["train"]["steps"], values["sample"]["prompts"] = 9, []
    values["checkpoint"] = {"every_steps": 4, "keep": None}
    cfg = parse_config(values)
    assert train(cfg)
    assert [read_manifest(path).step for path in list_checkpoints(cfg.run.dir)] == [9, 8, 6]


def test_steps_that_an_earlier_start_has_judged_are_not_judged_again() -> None:
    state = TrainState(step=12, recent_losses=[3.0] * 8, skips_in_a_row=1)
    skipped, spikes = Health(HealthConfig(spike_window=8, stop_after_skips=2), state).judge(
        11, [9.0, math.nan], [True, False]
    )
    assert (skipped, spikes) == (1, [])
    assert (state.skips_in_a_row, state.recent_losses) == (1, [3.0] * 8)


def test_a_row_of_spikes_is_left_out_to_its_end(tmp_path: Path) -> None:
    health = Health(HealthConfig(rollback=True, spike_window=8), TrainState(step=12, recent_losses=[3.0] * 8))
    _, spikes = health.judge(13, [9.0, 3.0, 9.0], [True] * 3)
    rollback = health.rollback(spikes, make_plan(parse_config(small_values(tmp_path)), 1000, world=1))
    assert rollback is not None
    assert rollback.positions == list(range(88, 120))  # steps 12 to 15, of 8 samples each


def test_a_run_without_a_single_update_is_not_done(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    nan_at({1, 2, 3}, monkeypatch)
    values["train"]["steps"], values["sample"]["prompts"] = 3, []
    cfg = parse_config(values)
    with pytest.raises(TrainingError, match="the updates of all 3 steps were not finite, so there is nothing to keep"):
        train(cfg)
    assert not (cfg.run.dir / "done").exists()

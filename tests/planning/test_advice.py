"""The verdict: fits, or why not and what would. Memory is one round number for each thing, so that the order shows."""

from collections.abc import Callable

import pytest

from gptscale.config.schema import Config
from gptscale.planning import memory
from gptscale.planning.advice import nearest_that_fits
from gptscale.planning.launch import Launch
from gptscale.planning.memory import GIB, largest_micro_batch, usable_bytes
from gptscale.planning.rates import find_gpu
from gptscale.runtime.gpus import Gpu

Make = Callable[..., Config]


def card(gib: float, name: str = "card") -> Gpu:
    """A GPU of which a run may use so many GiB."""
    return Gpu(name, (), 1e12, 1e12, 1e12, gib / memory.USABLE_SHARE, 1e12, 1e9)


@pytest.fixture(autouse=True)
def one_gib_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state takes 8 GiB over its shards, a sequence 2 GiB, or 1 where activations are computed again."""

    def memory_of(cfg: Config, launch: Launch) -> memory.Memory:
        each = 1 if cfg.train.activation_checkpointing else 2
        state = 8 * GIB // (launch.gpus if launch.shards else 1)
        return memory.Memory(state, 0, 0, each * GIB * launch.micro_batch_sequences, 0, 0, host=0)

    monkeypatch.setattr(memory, "memory_of", memory_of)


@pytest.mark.parametrize(("gib", "largest"), [(9.9, 0), (10, 1), (15.9, 2), (16, 4), (24, 8), (1000, 8)])
def test_the_largest_micro_batch_is_a_power_of_two_that_a_step_can_use(config: Make, gib: float, largest: int) -> None:
    assert largest_micro_batch(config(), Launch("none", 1), card(gib)) == largest


@pytest.mark.parametrize(
    ("gib", "engine", "gpus", "nearest"),
    [
        (12, "none", 1, "train.micro_batch_sequences=2"),
        (9.5, "none", 1, "train.activation_checkpointing=true train.micro_batch_sequences=1"),
        (7, "ddp", 2, "--engine zero1 train.micro_batch_sequences=1"),
        (5.5, "zero2", 2, "train.activation_checkpointing=true train.micro_batch_sequences=1"),
        (4.5, "zero2", 2, "--gpus 4 train.micro_batch_sequences=1"),
        (1.5, "zero2", 2, "--gpu t4"),
    ],
)
def test_the_smallest_change_is_named(config: Make, gib: float, engine: str, gpus: int, nearest: str) -> None:
    assert nearest_that_fits(config(), Launch(engine, gpus, 4), card(gib)) == nearest


def test_a_gpu_that_cannot_compute_the_run_is_not_named(config: Make) -> None:
    cfg = config(train={"precision": "bf16"})
    assert nearest_that_fits(cfg, Launch("zero2", 2, 4), card(1.5)) == "--gpu l4"  # a T4 has the memory, but no bf16


@pytest.mark.parametrize(
    ("gib", "nearest"),
    [(9.5, "train.activation_checkpointing=true train.micro_batch_sequences=1"), (7, None)],
)
def test_a_cpu_has_its_own_memory_only(config: Make, gib: float, nearest: str | None) -> None:
    assert nearest_that_fits(config(), Launch("none", 1, 4), card(gib, memory.CPU)) == nearest


def test_what_a_cpu_keeps_for_itself_counts_too() -> None:
    found = memory.Memory(1, 2, 3, 4, 5, 6, host=100)
    assert (found.needed(card(1)), found.largest(card(1))) == (21, "buffers")
    assert (found.needed(card(1, memory.CPU)), found.largest(card(1, memory.CPU))) == (121, "host")


def test_nothing_is_named_where_nothing_would_do(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    state = memory.Memory(int(find_gpu("b200").memory_gib * GIB), 0, 0, 0, 0, 0, host=0)
    monkeypatch.setattr(memory, "memory_of", lambda cfg, launch: state)
    assert nearest_that_fits(config(), Launch("none", 1, 1), card(20)) is None


def test_a_larger_micro_batch_is_named_where_only_that_fits(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one micro-batch a step of 8 sequences has no sum of gradients to keep."""

    def memory_of(cfg: Config, launch: Launch) -> memory.Memory:
        summed = 9 * GIB if launch.accumulation(cfg) > 1 else 0
        return memory.Memory(0, summed, 0, GIB * launch.micro_batch_sequences, 0, 0, host=0)

    monkeypatch.setattr(memory, "memory_of", memory_of)
    assert nearest_that_fits(config(), Launch("none", 1, 6), card(8.5)) == "train.micro_batch_sequences=8"
    assert nearest_that_fits(config(), Launch("none", 1, 6), card(13.5)) == "train.micro_batch_sequences=4"
    again = nearest_that_fits(config(), Launch("none", 1, 8), card(7.5, memory.CPU))
    assert again is None


def test_auto_leaves_more_room_than_a_number_that_somebody_chose(config: Make) -> None:
    sections = {"train": {"micro_batch_sequences": None}}
    # of 30 / 0.9 GiB that is 26.7 for auto: 8 and 2 for each sequence
    assert largest_micro_batch(config(), Launch("none", 1), card(30)) == 8
    assert usable_bytes(config(**sections), card(30)) == int(0.8 * 30 / 0.9 * GIB)
    assert largest_micro_batch(config(**sections), Launch("none", 1), card(26)) == 4
    assert largest_micro_batch(config(), Launch("none", 1), card(26)) == 8

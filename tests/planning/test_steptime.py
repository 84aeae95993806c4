"""Step times against arithmetic on paper, for a model of which everything is a round number."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from gptscale.config.schema import Config
from gptscale.planning import steptime
from gptscale.planning.activations import Activations
from gptscale.planning.launch import Launch
from gptscale.planning.steptime import Rates, calibrated, step_time

Make = Callable[..., Config]

RATES = Rates(flops=32_000.0, memory_bytes=40_000.0, link_bytes=1e3)


@pytest.fixture(autouse=True)
def round_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 FLOPs a token, so that a micro-batch of one sequence of 32 tokens takes a second; 1,000 elements."""

    class Size:
        total = 1000
        layers = 2
        block = 400

    monkeypatch.setattr(steptime, "flops_per_token", lambda model: 1000)
    monkeypatch.setattr(steptime, "recomputed_flops_per_token", lambda model: 250)
    monkeypatch.setattr(steptime, "model_size", lambda model: Size)
    monkeypatch.setattr(steptime, "updated_elements", lambda cfg, launch: 1000 // launch.sharing_gpus)


def test_computing_grows_with_the_tokens_of_one_gpu(config: Make) -> None:
    cfg = config(train={"micro_batch_sequences": 1})  # 8 sequences a step
    assert step_time(cfg, Launch("none", 1, 1), RATES).compute_s == 8
    assert step_time(cfg, Launch("ddp", 4, 1), RATES).compute_s == 2
    assert step_time(cfg, Launch("ddp", 3, 1), RATES).compute_s == 3  # one of nine is filling
    assert step_time(cfg, Launch("ddp", 4, 2), RATES).compute_s == 2


def test_what_is_computed_again_takes_time(config: Make) -> None:
    cfg = config(train={"micro_batch_sequences": 1, "activation_checkpointing": True})
    assert step_time(cfg, Launch("none", 1, 1), RATES).compute_s == 10


@pytest.mark.parametrize(("again", "took"), [(False, 8 * (1 + 2)), (True, 8 * (1.25 + 2.8))])
def test_what_is_moved_beside_the_products_takes_time_where_it_is_known(
    config: Make, monkeypatch: pytest.MonkeyPatch, again: bool, took: float
) -> None:
    monkeypatch.setattr(steptime, "activations", lambda cfg, sequences: Activations(1000 * sequences, 0, 0))
    cfg = config(train={"micro_batch_sequences": 1, "activation_checkpointing": again})
    rates = replace(RATES, beside_bytes=2500.0)  # 5 or 7 times 1,000 bytes
    assert step_time(cfg, Launch("none", 1, 1), rates).compute_s == pytest.approx(took)


def test_one_process_updates_and_sends_nothing(config: Make) -> None:
    found = step_time(config(), Launch("none", 1, 4), RATES)
    assert (found.update_s, found.communication_s, found.exposed_s) == (1, 0, 0)  # 40 bytes for each of 1,000
    assert found.total_s == 9


# 2 GPUs, so half of a tensor moves: 4,000 bytes of gradients or weights are 2 s. A micro-batch takes 1 s, a step has 4.
@pytest.mark.parametrize(
    ("engine", "precision", "sent", "hidden"),
    [
        ("ddp", "fp32", 4, 2 / 3),  # beside the backward pass of the last micro-batch
        ("zero1", "fp32", 4, 0),
        ("zero2", "fp32", 4 * 2 + 2, 0),
        ("zero3", "fp32", 4 * (4 + 2), 4),
        ("fsdp2", "fp32", 4 * 4 + 2, 4),
        ("zero2", "bf16", 4 * 2 + 2, 0),
        ("fsdp2", "bf16", 4 * 4 + 2, 4),
        ("zero2", "bf16-sharded", 4 * 2 + 1, 0),  # weights of 2 bytes, gradients of 4
        ("fsdp2", "bf16-sharded", 4 * 2 + 2, 4),
    ],
)
def test_communication_counts_where_nothing_is_computed_beside_it(
    config: Make, engine: str, precision: str, sent: float, hidden: float
) -> None:
    cfg = config(train={"micro_batch_sequences": 1, "precision": precision})
    found = step_time(cfg, Launch(engine, 2, 1), RATES)
    assert found.communication_s == pytest.approx(sent)
    assert found.exposed_s == pytest.approx(sent - hidden)


# 8 GPUs, so one micro-batch. In a machine of 2 half of 4,000 bytes moves at 2,000 bytes/s: 1 s for each of two gathers
# and the gradients. Between 4 machines 2 * 3/4 of a half's 2,000 bytes move at 500 bytes/s: 6 s.
@pytest.mark.parametrize(
    ("engine", "machine_gpus", "shard", "sent"),
    [
        ("hsdp", 2, None, 3 + 6),
        ("hsdp", 4, None, 3 * 1.5 + 2),
        ("hsdp", 2, 4, 3 * 3 + 2),  # a copy on two machines: its ring is as slow as the network's
        ("fsdp2", 2, None, 3 * 3.5),
    ],
)
def test_gradients_alone_go_between_machines_that_have_a_copy_each(
    config: Make, engine: str, machine_gpus: int, shard: int | None, sent: float
) -> None:
    cfg = config(train={"micro_batch_sequences": 1, "precision": "fp32"})
    launch = Launch(engine, 8, 1, machine_gpus=machine_gpus, dp_shard_size=shard)
    found = step_time(cfg, launch, replace(RATES, near_bytes=2e3, between_bytes=500.0))
    assert found.communication_s == pytest.approx(sent)
    assert found.exposed_s == pytest.approx(sent - 1)
    assert found.update_s == pytest.approx(1 / launch.sharing_gpus)


def test_communication_that_is_shorter_than_computing_costs_nothing(config: Make) -> None:
    cfg = config(train={"micro_batch_sequences": 1})
    fast = replace(RATES, link_bytes=1e6)
    assert step_time(cfg, Launch("fsdp2", 2, 1), fast).exposed_s == 0
    assert step_time(cfg, Launch("zero2", 2, 1), fast).exposed_s == pytest.approx(0.010)


def test_offloading_pays_for_the_way_to_the_machines_memory(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steptime, "HOST_BYTES_PER_S", 1000.0)
    cfg = config(train={"micro_batch_sequences": 1})
    # 500 elements: 40 bytes each for the update, and in each of 4 micro-batches 4 + 2 * 4
    assert step_time(cfg, Launch("zero3-offload", 2, 1), RATES).update_s == pytest.approx(0.5 * (40 + 4 * 12))


@pytest.mark.parametrize("engine", ["none", "ddp", "zero2", "fsdp2"])
def test_calibration_finds_the_rate_that_a_measured_step_had(config: Make, engine: str) -> None:
    cfg = config(train={"micro_batch_sequences": 1})
    launch = Launch(engine, 1 if engine == "none" else 2, 1)
    rates = replace(RATES, link_bytes=1e4)
    took = step_time(cfg, launch, rates).total_s
    assert calibrated(cfg, launch, replace(rates, flops=1.0), took).flops == pytest.approx(32_000)


def test_a_step_that_only_waited_gives_the_lowest_rate_that_explains_it(config: Make) -> None:
    cfg = config(train={"micro_batch_sequences": 1})
    launch = Launch("zero3", 2, 1)  # 6 s of communication for each micro-batch: any of up to 6 s would hide behind it
    took = step_time(cfg, launch, RATES).total_s
    assert calibrated(cfg, launch, RATES, took).flops == pytest.approx(32_000 / 6)

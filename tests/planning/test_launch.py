from collections.abc import Callable
from pathlib import Path

import pytest

from gptscale.config.schema import Config
from gptscale.errors import ConfigError
from gptscale.planning.launch import ENGINES, Launch, check_launch, legal_gpu_counts, nearest_counts
from gptscale.training.plan import make_plan

Make = Callable[..., Config]
LAUNCH_FILES = Path(__file__).parents[2] / "launch" / "accelerate"


def test_every_launch_file_for_gpus_can_be_planned() -> None:
    assert {path.stem for path in LAUNCH_FILES.glob("*.yaml")} - {"cpu"} == set(ENGINES) - {"none"}


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 8])
def test_a_launch_cuts_a_step_as_training_does(config: Make, gpus: int, micro_batch: int) -> None:
    cfg = config(train={"micro_batch_sequences": micro_batch})
    launch, plan = Launch("zero1", gpus, micro_batch), make_plan(cfg, 100, gpus)
    assert (launch.accumulation(cfg), launch.filler_sequences(cfg)) == (plan.accumulation, plan.filler_sequences)


def test_legal_counts_divide_a_step_into_whole_micro_batches(config: Make) -> None:
    cfg = config(train={"tokens_per_step": 12 * 32})
    assert legal_gpu_counts(cfg) == [1, 2, 3, 4, 6, 12]
    assert legal_gpu_counts(cfg, 4) == [1, 3]
    assert legal_gpu_counts(cfg, 5) == []
    for gpus in range(1, 13):
        assert (Launch("ddp", gpus, 1).filler_sequences(cfg) == 0) == (gpus in [1, 2, 3, 4, 6, 12])


def test_the_nearest_counts_lie_on_both_sides_if_there_are_any() -> None:
    assert nearest_counts(5, [1, 2, 4, 8]) == [4, 8]
    assert nearest_counts(9, [1, 2, 4, 8]) == [8]


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="--engine=zero4 is unknown; choose one of none, ddp, zero1, zero2, zero3, zero3-off"
    ):
        Launch("zero4", 2)


@pytest.mark.parametrize(
    ("gpus", "machine_gpus", "engines"),
    [
        (1, 8, ["none", "zero1", "zero2", "zero3", "zero3-offload", "fsdp2"]),
        (8, 8, ["ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp2"]),  # all share one copy: that is fsdp2
        (12, 8, ["ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp2"]),
        (16, 8, ["ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp2", "hsdp"]),
        (12, 4, ["ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp2", "hsdp"]),
    ],
)
def test_gpus_have_the_engines_that_are_another_way_to_use_them(
    gpus: int, machine_gpus: int, engines: list[str]
) -> None:
    launch = Launch("zero1", 2, machine_gpus=machine_gpus)
    assert [engine for engine in ENGINES if launch.under(engine, gpus)] == engines


def test_a_launch_stays_where_it_is_whatever_it_is_called() -> None:
    for launch in (Launch("hsdp", 8), Launch("ddp", 1)):
        assert launch.under(launch.engine, launch.gpus) == launch


def test_a_copy_of_the_state_is_on_all_gpus_or_on_those_of_a_machine_or_on_each() -> None:
    launches = {engine: Launch(engine, 32, machine_gpus=4) for engine in ENGINES if engine != "none"}
    sharing = {engine: launch.sharing_gpus for engine, launch in launches.items()}
    assert sharing == {"ddp": 1, "zero1": 32, "zero2": 32, "zero3": 32, "zero3-offload": 32, "fsdp2": 32, "hsdp": 4}
    assert [launches[engine].copies for engine in ("ddp", "fsdp2", "hsdp")] == [32, 1, 8]
    assert Launch("hsdp", 32, machine_gpus=4, dp_shard_size=8).copies == 4


def test_machines_that_do_not_divide_the_gpus_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match="has a copy of the state on 8 GPUs each, which do not divide 12; give other --gpus, --machine-gpus or",
    ):
        Launch("hsdp", 12)


def test_one_process_has_one_gpu() -> None:
    with pytest.raises(ConfigError, match="--engine=none is one process, not 4; choose ddp for several GPUs"):
        Launch("none", 4)


def test_sharded_weights_need_an_engine_that_shards(config: Make) -> None:
    cfg = config(train={"precision": "bf16-sharded"})
    with pytest.raises(ConfigError, match="bf16-sharded needs an engine that shards, and --engine=ddp does not; use"):
        check_launch(cfg, Launch("ddp", 2))
    check_launch(cfg, Launch("fsdp2", 2))


def test_more_gpus_than_sequences_are_refused(config: Make) -> None:
    with pytest.raises(
        ConfigError, match="--gpus=9 is more than the 8 sequences of a step; use 8 GPUs or fewer, or raise"
    ):
        check_launch(config(), Launch("ddp", 9))
    check_launch(config(), Launch("ddp", 8))

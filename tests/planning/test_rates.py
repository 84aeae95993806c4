from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptscale.config.schema import Config
from gptscale.errors import ConfigError
from gptscale.planning.launch import Launch
from gptscale.planning.rates import Measured, calibrated_mfu, find_gpu, measured, plan_rates, processor, shared
from gptscale.planning.steptime import moved_bytes, step_time
from gptscale.runtime.gpus import Gpu

Make = Callable[..., Config]


def read(cfg: Config, speeds: list[float], **extra: Any) -> Measured:
    steps = [{"step": n + 1.0, "train/tokens_per_s": x, "train/mfu": x / 1000} for n, x in enumerate(speeds)]
    records = [{"step": 0.0, "val/loss": 3.0}, *steps]
    return measured(Path("runs/x"), cfg, "CPU, 2 threads", Launch("none", 1), [*records, extra] if extra else records)


def test_the_warm_half_of_a_record_counts(config: Make) -> None:
    run = read(config(), [1, 2, 300, 500, 400, 310, 330])  # the last four
    assert (run.tokens_per_s, run.mfu) == (365, 0.365)
    assert run.disk_bytes_per_s is None


def test_saves_tell_how_fast_the_disk_is(config: Make) -> None:
    run = read(config(), [100], **{"checkpoint/bytes": 600.0, "checkpoint/durable_s": 2.0})
    assert run.disk_bytes_per_s == 300


def test_a_speed_or_a_duration_of_zero_measures_nothing(config: Make) -> None:
    run = read(config(), [100, 200, 0, 0], **{"checkpoint/bytes": 600.0, "checkpoint/durable_s": 0.0})
    assert (run.tokens_per_s, run.disk_bytes_per_s) == (200, None)
    with pytest.raises(ConfigError, match="runs/x holds no measured speed"):
        read(config(), [0])


def test_a_run_without_a_speed_is_refused(config: Make) -> None:
    with pytest.raises(
        ConfigError, match="--from=runs/x holds no measured speed of its last start; let it train for some steps"
    ):
        read(config(), [])


def test_an_unknown_gpu_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="--gpu=h1000 is unknown; choose one of b200, h200-nvl, h200, h100-nvl, h100-pcie"
    ):
        find_gpu("h1000")
    assert find_gpu("H100").name == "h100"


def test_links_are_the_networks_beyond_one_machine(gpt2: Make) -> None:
    h100, l40s = find_gpu("h100"), find_gpu("l40s")

    def links(gpu: Gpu, gpus: int, machine_gpus: int, bandwidth: float | None = None) -> tuple[float | None, ...]:
        rates = plan_rates(gpt2(), gpu, Launch("fsdp2", gpus, machine_gpus=machine_gpus), bandwidth=bandwidth)
        return rates.link_bytes, rates.near_bytes, rates.between_bytes

    assert links(h100, 8, 8) == (450e9, None, None)
    assert links(h100, 8, 8, bandwidth=100e9) == (100e9, None, None)
    assert links(h100, 16, 8) == (400e9, 450e9, 50e9)  # rings through the network of all 8
    assert links(h100, 16, 4) == (200e9, 450e9, 50e9)
    assert links(h100, 12, 8) == (200e9, 450e9, 50e9)  # one of the two has four
    assert links(h100, 64, 8, bandwidth=12e9) == (12e9, 450e9, 1.5e9)  # which 8 at once share
    assert links(l40s, 16, 8) == (32e9, 32e9, 32e9)  # its own link is slower
    assert links(l40s, 16, 8, bandwidth=64e9) == (64e9, 64e9, 8e9)


def test_a_given_share_of_the_peak_is_used(gpt2: Make) -> None:
    assert plan_rates(gpt2(), find_gpu("a100-80"), Launch("none", 1), mfu=0.5).flops == 156e12
    assert plan_rates(gpt2(precision="fp32"), find_gpu("a100-80"), Launch("none", 1), mfu=0.5).flops == 9.75e12


@pytest.mark.parametrize("engine", ["none", "ddp"])
def test_a_measured_run_is_predicted_as_it_was(gpt2: Make, engine: str) -> None:
    cfg, gpus = gpt2(), 1 if engine == "none" else 8
    run = Measured(cfg, Launch(engine, gpus, 16), "NVIDIA H100 80GB HBM3", gpus * 150_000, 0.13, None)
    mfu = calibrated_mfu(run, find_gpu("h100"))
    # 854,438,400 FLOPs a token * 150,000 = 128 TFLOP/s, of 989; a little more where updating takes its share
    assert 0.1296 < mfu < 0.1310
    again = step_time(cfg, run.launch, plan_rates(cfg, find_gpu("h100"), run.launch, mfu=mfu))
    assert again.total_s == pytest.approx(524_288 / (gpus * 150_000))


def test_a_run_that_was_faster_than_possible_is_refused(gpt2: Make) -> None:
    run = Measured(gpt2(), Launch("zero2", 8, 16), "NVIDIA H100 80GB HBM3", 8 * 150_000, 0.13, None)
    with pytest.raises(
        ConfigError, match=r"--from took 0.437 s for a step, which 8 x h100 with 1 GB/s between them cannot"
    ):
        calibrated_mfu(run, find_gpu("h100"), bandwidth=1e9)


def test_a_processor_has_the_peak_that_its_utilisation_was_measured_against(config: Make) -> None:
    run = Measured(config(), Launch("none", 1, 4), "CPU, 2 threads", 1000.0, 0.25, None)
    cpu = processor(run, 8 * 2**30)
    # 6 * (2 * 12 * 32^2 + 257 * 32) + 12 * 2 * 32 * 32 = 221,376 FLOPs a token
    assert cpu.peak_flops(run.cfg.train) == pytest.approx(1000 * 221_376 / 0.25)
    assert cpu.memory_gib == 8


def test_a_processor_of_several_ranks_has_the_peak_of_one(config: Make) -> None:
    run = Measured(config(), Launch("ddp", 2, 4), "CPU, 2 threads", 1000.0, 0.25, None)
    assert processor(run, 2**30).peak_flops(run.cfg.train) == pytest.approx(500 * 221_376 / 0.25)


def test_products_of_a_processor_may_be_faster_than_its_whole_step(config: Make) -> None:
    run = Measured(config(), Launch("none", 1, 4), "CPU, 2 threads", 1e9, 0.9, None)
    cpu = processor(run, 2**30)  # half of the time was beside the products, so these took the other half
    mfu = calibrated_mfu(run, cpu)
    assert mfu > 1.8  # a little of it updates
    again = step_time(run.cfg, run.launch, plan_rates(run.cfg, cpu, run.launch, mfu=mfu))
    assert again.total_s == pytest.approx(run.cfg.train.tokens_per_step / 1e9)


def test_blocks_that_are_computed_again_are_moved_two_times_more(config: Make) -> None:
    again = config(train={"activation_checkpointing": True})
    assert moved_bytes(again, 4) * 5 == moved_bytes(config(), 4) * 7


@pytest.mark.parametrize("tokens_per_s", [1e3, 1e9])
def test_a_run_on_a_processor_is_predicted_as_it_was(config: Make, tokens_per_s: float) -> None:
    cfg = config()  # one micro-batch is 4 sequences of 32 tokens
    run = Measured(cfg, Launch("none", 1, 4), "CPU, 2 threads", tokens_per_s, 0.25, None)
    cpu = processor(run, 8 * 2**30)
    rates = plan_rates(cfg, cpu, run.launch, mfu=calibrated_mfu(run, cpu))
    assert step_time(cfg, run.launch, rates).total_s == pytest.approx(cfg.train.tokens_per_step / tokens_per_s)
    share = moved_bytes(cfg, 4) / rates.beside_bytes / (128 / tokens_per_s)
    assert share < 0.01 if tokens_per_s == 1e3 else share == pytest.approx(0.5)


def test_more_ranks_share_the_cores_that_a_run_on_a_processor_had(config: Make) -> None:
    cfg = config()
    run = Measured(cfg, Launch("ddp", 2, 4), "CPU, 1 threads", 1000.0, 0.25, None)
    cpu = processor(run, 8 * 2**30)
    half = shared(cpu, run, 4)
    assert half.peak_flops(cfg.train) == cpu.peak_flops(cfg.train) / 2
    assert half.beside_bytes_per_s == (cpu.beside_bytes_per_s or 0) / 2
    assert half.memory_gib == cpu.memory_gib  # which was divided before
    for ranks in (1, 2):
        assert shared(cpu, run, ranks) == cpu
    assert shared(find_gpu("h100"), run, 4) == find_gpu("h100")


def test_the_last_start_alone_counts(config: Make) -> None:
    steps = [
        {"step": n, "train/tokens_per_s": x, "train/mfu": x / 1000} for n, x in ((1, 100.0), (2, 100.0), (3, 400.0))
    ]
    assert measured(Path("runs/x"), config(), "CPU", Launch("ddp", 4), steps, from_step=2).tokens_per_s == 400
    with pytest.raises(ConfigError, match="runs/x holds no measured speed of its last start"):
        measured(Path("runs/x"), config(), "CPU", Launch("ddp", 4), steps, from_step=3)

"""micro_batch_sequences: auto."""

import shutil
from typing import Any

import pytest
import torch

from gptscale.config.load import load_config, parse_config
from gptscale.config.schema import Config
from gptscale.errors import ConfigError, TrainingError
from gptscale.model.gpt import GPTModel
from gptscale.planning.launch import Launch
from gptscale.planning.memory import Memory
from gptscale.training import micro_batch
from gptscale.training.micro_batch import launch_of_this_process, with_micro_batch
from gptscale.training.run import train
from tests.planning.measure import peak_bytes


def auto(values: dict[str, Any], **train: Any) -> Config:
    return parse_config({**values, "train": {**values["train"], "micro_batch_sequences": "auto", **train}})


def with_memory(patch: pytest.MonkeyPatch, free: float) -> None:
    patch.setattr(micro_batch, "free_bytes", lambda device: free / micro_batch.SAFE_SHARE)


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block of memory before the first sequence, and one for each."""

    def memory_of(cfg: Config, launch: Launch) -> Memory:
        return Memory(900, 0, 0, 100 * launch.micro_batch_sequences, 0, 0, host=100)

    monkeypatch.setattr(micro_batch, "memory_of", memory_of)


@pytest.mark.usefixtures("costs")
@pytest.mark.parametrize(
    ("free", "number"), [(1100, 1), (1299, 2), (1399, 2), (1400, 4), (1799, 4), (1800, 8), (9999, 8)]
)
def test_the_largest_power_of_two_that_fits_and_a_step_can_use(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, free: int, number: int
) -> None:
    with_memory(monkeypatch, free)  # a step has 8 sequences
    assert with_micro_batch(auto(values)).train.micro_batch_sequences == number


@pytest.mark.usefixtures("costs")
def test_a_model_that_does_not_fit_is_told(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 1099)
    with pytest.raises(TrainingError, match=r"not even one sequence fits: .* set train.activation_checkpointing=true"):
        with_micro_batch(auto(values))


@pytest.mark.usefixtures("costs")
@pytest.mark.parametrize(("drop_rate", "elsewhere"), [(0.0, 8), (0.1, 4)])
def test_a_run_keeps_the_number_of_its_first_start(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, drop_rate: float, elsewhere: int
) -> None:
    with_memory(monkeypatch, 1450)
    values["model"]["drop_rate"] = drop_rate
    cfg = auto(values, steps=3)
    assert train(cfg)
    assert load_config(cfg.run.dir / "config.yaml").train.micro_batch_sequences == 4
    with_memory(monkeypatch, 9999)
    assert with_micro_batch(cfg).train.micro_batch_sequences == 4
    with monkeypatch.context() as patch:
        patch.setattr(micro_batch.ranks, "gather", lambda value: [value, None])  # of two ranks the first looks
        assert with_micro_batch(cfg).train.micro_batch_sequences == 4
    provenance = cfg.run.dir / "provenance.json"  # as if that had been two ranks, with half of a step each
    provenance.write_text(provenance.read_text().replace('"world": 1', '"world": 2'))
    assert with_micro_batch(cfg).train.micro_batch_sequences == elsewhere


@pytest.mark.usefixtures("costs")
def test_a_step_of_fewer_sequences_finds_its_own_number(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 9999)
    assert train(auto(values, steps=2))  # 8 sequences a step
    values["resume"] = {"allow": ["tokens_per_step"]}
    cfg = auto(values, steps=3, tokens_per_step=4 * 32)
    assert with_micro_batch(cfg).train.micro_batch_sequences == 4
    assert train(cfg)
    assert load_config(cfg.run.dir / "config.yaml").train.micro_batch_sequences == 4
    assert train(auto(values, steps=4, tokens_per_step=4 * 32))


@pytest.mark.usefixtures("costs")
def test_a_start_without_a_checkpoint_binds_no_later_one(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 9999)
    cfg = auto(values, steps=2)
    assert train(cfg)
    shutil.rmtree(cfg.run.dir / "checkpoints")
    with_memory(monkeypatch, 1299)
    assert with_micro_batch(cfg).train.micro_batch_sequences == 2


def test_a_given_number_is_left_alone(values: dict[str, Any]) -> None:
    assert with_micro_batch(parse_config(values)).train.micro_batch_sequences == 4


ZERO = "ACCELERATE_DEEPSPEED_"


@pytest.mark.parametrize(
    ("env", "launch"),
    [
        ({}, Launch("none", 1)),
        ({"WORLD_SIZE": "8"}, Launch("ddp", 8)),
        ({"WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "true"}, Launch("fsdp2", 8)),
        (
            {
                "WORLD_SIZE": "8",
                "ACCELERATE_USE_FSDP": "true",
                "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
                "PARALLELISM_CONFIG_DP_SHARD_SIZE": "4",
            },
            Launch("hsdp", 8, dp_shard_size=4),
        ),
        ({"WORLD_SIZE": "4", "ACCELERATE_USE_DEEPSPEED": "true", f"{ZERO}ZERO_STAGE": "1"}, Launch("zero1", 4)),
        (
            {
                "ACCELERATE_USE_DEEPSPEED": "true",
                f"{ZERO}ZERO_STAGE": "3",
                f"{ZERO}OFFLOAD_OPTIMIZER_DEVICE": "cpu",
                f"{ZERO}OFFLOAD_PARAM_DEVICE": "cpu",
            },
            Launch("zero3-offload", 1),
        ),
        (  # weights stay on the device
            {
                "ACCELERATE_USE_DEEPSPEED": "true",
                f"{ZERO}ZERO_STAGE": "3",
                f"{ZERO}OFFLOAD_OPTIMIZER_DEVICE": "cpu",
            },
            Launch("zero3", 1),
        ),
        (  # DeepSpeed offloads weights of stage 3 alone
            {
                "ACCELERATE_USE_DEEPSPEED": "true",
                f"{ZERO}ZERO_STAGE": "2",
                f"{ZERO}OFFLOAD_OPTIMIZER_DEVICE": "cpu",
                f"{ZERO}OFFLOAD_PARAM_DEVICE": "cpu",
            },
            Launch("zero2", 1),
        ),
    ],
)
def test_what_the_launcher_set_up_is_what_is_planned_for(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], launch: Launch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert launch_of_this_process() == launch


def test_a_stage_that_zero_has_not_is_refused_in_the_launchs_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv(f"{ZERO}ZERO_STAGE", "0")
    with pytest.raises(ConfigError, match="the launch asks for ZeRO stage 0; choose 1, 2 or 3"):
        launch_of_this_process()


def test_a_larger_micro_batch_than_the_chosen_would_not_fit(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is measured: twice what is chosen takes more than there is."""
    values["model"] |= {"drop_rate": 0.0, "n_layers": 8, "emb_dim": 64}
    values["checkpoint"]["background"] = False  # a step alone is measured
    cfg = parse_config({**values, "train": {**values["train"], "tokens_per_step": 64 * 32}})
    model = GPTModel(cfg.model, seed=1)
    state = 4 * sum(p.numel() for p in model.parameters())

    def step(sequences: int) -> int:
        tokens = torch.zeros(sequences, 32, dtype=torch.int64)
        model(tokens, tokens).backward()
        return 4 * state + peak_bytes(lambda: model(tokens, tokens).backward())  # weights, gradients and moments

    with_memory(monkeypatch, step(8) * 1.1)
    assert with_micro_batch(auto(values, tokens_per_step=64 * 32)).train.micro_batch_sequences == 8
    assert step(16) > step(8) * 1.1


@pytest.mark.usefixtures("costs")
def test_the_number_is_that_of_the_rank_with_the_least_memory(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 9999)  # for 8
    monkeypatch.setattr(micro_batch.ranks, "gather", lambda value: [value, value and 2])
    assert with_micro_batch(auto(values)).train.micro_batch_sequences == 2

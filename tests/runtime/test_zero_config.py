"""What a launch may say about DeepSpeed, and what it may not."""

import json
from pathlib import Path
from typing import Any

import pytest

from gptscale.errors import ConfigError
from gptscale.planning.state import LIVE_ELEMENTS
from gptscale.runtime.engine import EngineSettings
from gptscale.runtime.zero import check_zero
from gptscale.runtime.zero_config import launched_zero, zero_config

SETTINGS = EngineSettings("fp32", accumulation=4, micro_batch_sequences=2, clip_norm=0.5)


def with_file(folder: Path, monkeypatch: pytest.MonkeyPatch, **said: Any) -> dict[str, Any]:
    path = folder / "deepspeed.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, **said}))
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    return zero_config(SETTINGS, world=3, on_cuda=False)


def test_the_config_fills_what_the_launch_leaves_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu")
    config = zero_config(SETTINGS, world=3, on_cuda=True)
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["gradient_accumulation_steps"] == 4
    assert config["train_batch_size"] == 24
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert config["zero_optimization"]["memory_efficient_linear"] is False
    assert config["zero_optimization"]["round_robin_gradients"] is False
    assert config["zero_optimization"]["reduce_bucket_size"] == 50_000_000  # DeepSpeed's own is ten times that
    # what `gptscale plan` counts, where DeepSpeed's own would keep a whole model
    assert config["zero_optimization"]["stage3_max_live_parameters"] == LIVE_ELEMENTS == 100_000_000
    assert config["zero_optimization"]["stage3_max_reuse_distance"] == 0


def test_no_clipping_is_said_as_zero_because_nothing_would_mean_one() -> None:
    assert zero_config(EngineSettings("fp32", 1), 1, on_cuda=False)["gradient_clipping"] == 0.0


def test_deepspeed_does_not_wait_for_the_device_around_each_micro_batch() -> None:
    from deepspeed.utils.config import get_timers_config

    assert get_timers_config({}).enabled
    assert not get_timers_config(zero_config(SETTINGS, world=3, on_cuda=True)).enabled


def test_bf16_is_autocast_and_bf16_sharded_reduces_in_fp32() -> None:
    cast = zero_config(EngineSettings("bf16", 1), 1, on_cuda=False)
    # without modules that are called safe, all gradients are sent in fp32
    assert cast["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert not cast["bf16"]["enabled"]
    sharded = zero_config(EngineSettings("bf16-sharded", 1), 1, on_cuda=False)
    assert sharded["bf16"]["enabled"]
    assert (sharded["data_types"], sharded["communication_data_type"]) == ({"grad_accum_dtype": "fp32"}, "fp32")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"gradient_clipping": 1.0}, "gradient_clipping=1.0, but optim.clip_norm is 0.5"),
        (
            {"train_micro_batch_size_per_gpu": 8},
            "train_micro_batch_size_per_gpu=8, but train.micro_batch_sequences is 2",
        ),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps=1, but accumulation"),
        ({"train_batch_size": 16}, "train_batch_size=16, but samples of a step with filling"),
        ({"bf16": {"enabled": True}}, "bf16.enabled=true, but train.precision is fp32"),
        ({"fp16": {"enabled": True}}, "fp16.enabled=true, but train.precision is fp32"),
        ({"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, "round_robin_gradients=true"),
        ({"zero_optimization": {"stage": 0}}, "ZeRO stage 0; choose 1, 2 or 3"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "offload_param to nvme"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/"}}},
            "offload_optimizer to nvme at ZeRO stage 2; only stage 3 has it",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
            "offload_optimizer_nvme_path=None is no folder",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/nowhere"}}},
            "offload_optimizer_nvme_path=/nowhere is no folder",
        ),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}, "zero_hpz_partition_size=2"),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": 2}}, "mics_shard_size=2"),
        ({"scheduler": {}}, "has a section scheduler"),
        ({"optimizer": {}}, "has a section optimizer"),
    ],
)
def test_a_file_that_contradicts_the_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        with_file(tmp_path, monkeypatch, **said)
    assert message in str(refused.value)


@pytest.mark.parametrize("buildable", [True, False])
def test_nvme_needs_what_deepspeed_builds_with_libaio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buildable: bool
) -> None:
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "nvme")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH", str(tmp_path))
    monkeypatch.setattr("gptscale.runtime.zero_config.can_swap", lambda: buildable)
    if buildable:
        offload = zero_config(SETTINGS, world=3, on_cuda=True)["zero_optimization"]["offload_optimizer"]
        assert offload == {"device": "nvme", "nvme_path": str(tmp_path)}
        return
    with pytest.raises(ConfigError, match="builds async_io with a C\\+\\+ compiler, ninja and libaio's headers"):
        zero_config(SETTINGS, world=3, on_cuda=True)


def test_a_file_that_agrees_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zero = {"stage": 2, "reduce_bucket_size": 1000}
    config = with_file(tmp_path, monkeypatch, gradient_clipping="auto", zero_optimization=zero)
    assert config["zero_optimization"]["reduce_bucket_size"] == 1000


def test_what_a_file_leaves_to_its_reader_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zero = {"stage": 3, "overlap_comm": True, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}
    found = with_file(tmp_path, monkeypatch, zero_optimization=zero)["zero_optimization"]
    assert (found["stage"], found["overlap_comm"], found["reduce_bucket_size"]) == (3, True, 500_000)
    assert "auto" not in found.values()  # which Accelerate would look for in the config of a Hugging Face model


@pytest.mark.parametrize(
    ("stage", "optimizer", "weights", "name"),
    [
        (None, "none", "none", "zero2"),
        ("1", "none", "none", "zero1"),
        ("2", "cpu", "cpu", "zero2"),
        ("3", "cpu", "none", "zero3"),
        ("3", "cpu", "cpu", "zero3-offload"),
    ],
)
def test_a_stage_is_called_as_its_launch_file(
    monkeypatch: pytest.MonkeyPatch, stage: str | None, optimizer: str, weights: str, name: str
) -> None:
    if stage is not None:
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", optimizer)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", weights)
    assert launched_zero() == name


def test_a_file_that_says_nothing_of_zero_is_refused_also_before_an_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deepspeed.json"
    path.write_text("{}")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    with pytest.raises(ConfigError, match="asks for ZeRO stage 0; choose 1, 2 or 3"):
        launched_zero()


@pytest.mark.parametrize("content", [None, "{", "\xff", "[" * 100_000], ids=["none", "half", "no text", "too deep"])
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "deepspeed.json"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    with pytest.raises(ConfigError, match=f"deepspeed_config_file={path} cannot be read"):
        zero_config(SETTINGS, world=3, on_cuda=False)


@pytest.mark.parametrize("silent", [None, "auto"])
def test_null_says_nothing_as_auto_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: str | None) -> None:
    offloads = {"offload_optimizer": silent, "offload_param": silent}
    zero = {"stage": 3, "reduce_bucket_size": silent, "zero_hpz_partition_size": silent, **offloads}
    found = with_file(tmp_path, monkeypatch, zero_optimization=zero, bf16=silent, gradient_clipping=silent)
    assert found == with_file(tmp_path, monkeypatch, zero_optimization={"stage": 3})
    assert launched_zero() == "zero3"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"zero_optimization": None}, "asks for ZeRO stage 0; choose 1, 2 or 3"),
        ({"zero_optimization": {"stage": True}}, "asks for ZeRO stage true; choose 1, 2 or 3"),
        ({"zero_optimization": 2}, "gives zero_optimization as 2, which stands in braces; write "),
        ({"bf16": True}, "gives bf16 as true, which stands in braces; write "),
        ({"zero_optimization": {"stage": 3, "offload_param": "cpu"}}, 'offload_param as "cpu", which stands in braces'),
        (
            {"zero_optimization": {"stage": 3, "mics_shard_size": "2"}},
            "says mics_shard_size=2, which checkpoints do not",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": 3}}},
            "offload_optimizer_nvme_path=3 is no folder",
        ),
    ],
)
def test_values_of_another_kind_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        with_file(tmp_path, monkeypatch, **said)


def test_a_file_that_is_no_object_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deepspeed.json"
    path.write_text("null")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    with pytest.raises(ConfigError, match="gives the whole as null, which stands in braces; write "):
        launched_zero()


def test_a_stage_of_the_environment_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "two")
    with pytest.raises(ConfigError, match='asks for ZeRO stage "two"; choose 1, 2 or 3'):
        launched_zero()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"reduce_bucket_sise": 3},
            "says zero_optimization.reduce_bucket_sise=3: Extra inputs are not permitted; write",
        ),
        ({"reduce_bucket_size": "x"}, 'says zero_optimization.reduce_bucket_size="x": Input should be a valid integer'),
        ({"offload_optimizer": {"device": "gpu"}}, 'says zero_optimization.offload_optimizer.device="gpu": Input'),
    ],
)
def test_what_deepspeed_does_not_take_is_named(said: dict[str, Any], message: str) -> None:
    check_zero({"stage": 2})
    with pytest.raises(ConfigError, match=message):
        check_zero({"stage": 2, **said})

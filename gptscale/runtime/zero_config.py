"""DeepSpeed's configuration: what the launch says about ZeRO, filled up from the run's config. Imports no torch."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptscale.errors import ConfigError

if TYPE_CHECKING:
    from gptscale.runtime.engine import EngineSettings

BUCKET_ELEMENTS = {"cuda": 50_000_000, "cpu": 500_000}
"""Gradients that are sent at once. DeepSpeed's own 5e8 are more than most models of this family have: it would take
gigabytes (on a CPU also half a minute), and send everything at the end of a step, beside no arithmetic."""

LIVE_ELEMENTS = 100_000_000
"""Weights that ZeRO-3 has gathered at one time, on their way too. DeepSpeed's own 1e9, and as many before a weight that
is used again is let go, are more than most models of this family have: a rank would keep them all through a step."""

_SECTIONS = ("zero_optimization", "offload_optimizer", "offload_param", "bf16", "fp16", "torch_autocast")
"""What DeepSpeed's file has in braces, of what is read here."""


def zero_config(settings: "EngineSettings", world: int, on_cuda: bool) -> dict[str, Any]:
    """The whole DeepSpeed configuration of a run.

    Raises ConfigError where the launch says something else than the run's config, or something unsafe.
    """
    config = _from_launch()
    _fill(config, "train_micro_batch_size_per_gpu", settings.micro_batch_sequences, "train.micro_batch_sequences")
    _fill(config, "gradient_accumulation_steps", settings.accumulation, "accumulation, which follows from train.* and")
    _fill(config, "gradient_clipping", settings.clip_norm or 0.0, "optim.clip_norm")  # absent, it would clip at 1
    sequences = settings.micro_batch_sequences * settings.accumulation * world
    _fill(config, "train_batch_size", sequences, "samples of a step with filling, which follow from train.* and")
    _fill_precision(config, settings)
    _refuse(config)
    _fill_zero(config["zero_optimization"], on_cuda)
    # torch's fused AdamW also under offload: DeepSpeed's is not faster (benchmarks/optimizer.py) and needs a compiler
    config["zero_force_ds_cpu_optimizer"] = False
    # Nobody reads its throughput, for which it would wait for the device around every micro-batch; torch.compile fails
    # at that wait.
    config["timers"] = {"throughput": {"enabled": False}}
    return config


def launched_zero() -> str:
    """The stage that the launch asks for, as launch files are called; offloaded only where weights are too.

    Raises ConfigError for what `zero_config` refuses.
    """
    config = _from_launch()
    _refuse(config)
    zero = config["zero_optimization"]
    offloads = all(zero.get(f"offload_{part}", {}).get("device", "none") != "none" for part in ("optimizer", "param"))
    return f"zero{zero['stage']}" + ("-offload" if offloads and zero["stage"] == 3 else "")


def _from_launch() -> dict[str, Any]:
    """The DeepSpeed file that the launch names, or else the few values that Accelerate's own files know."""
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if path != "none":
        try:
            config: dict[str, Any] = _said("the whole", json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"the launch's deepspeed_config_file={path} cannot be read: {error}") from None
        return {**config, "zero_optimization": {"stage": 0, **config.get("zero_optimization", {})}}
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    zero: dict[str, Any] = {"stage": int(stage) if stage.isdecimal() else stage}
    for part in ("optimizer", "param"):
        device = os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{part.upper()}_DEVICE", "none")
        if device != "none":
            zero[f"offload_{part}"] = {"device": device}
        if device == "nvme":
            folder = os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{part.upper()}_NVME_PATH", "none")
            zero[f"offload_{part}"] |= {"nvme_path": folder} if folder != "none" else {}
    return {"zero_optimization": zero}


def _said(section: str, found: Any) -> dict[str, Any]:
    """What a section of the launch's file says; null and "auto" say nothing. Raises ConfigError where it is none."""
    if not isinstance(found, dict):
        raise ConfigError(
            f"the launch's DeepSpeed file gives {section} as {json.dumps(found):.60}, which stands in braces; "
            "write {...} as DeepSpeed has it, or leave it out"
        )
    said = {key: value for key, value in found.items() if value not in (None, "auto")}
    return {key: _said(key, value) if key in _SECTIONS else value for key, value in said.items()}


def _fill(config: dict[str, Any], key: str, value: float | str, setting: str) -> None:
    found = config.get(key, "auto")
    if found not in ("auto", value):
        raise ConfigError(
            f"the launch's DeepSpeed file says {key}={found}, but {setting} is {value}; "
            f'leave {key} out of the file, or write "auto"'
        )
    config[key] = value


def _fill_precision(config: dict[str, Any], settings: "EngineSettings") -> None:
    """bf16: DeepSpeed keeps fp32 weights and casts by autocast. bf16-sharded: bf16 weights, fp32 masters."""
    sharded = settings.precision == "bf16-sharded"
    expected = {"bf16": sharded, "fp16": False, "torch_autocast": settings.precision == "bf16"}
    for section, enabled in expected.items():
        found = config.get(section, {}).get("enabled", "auto")
        if found not in ("auto", enabled):
            raise ConfigError(
                f"the launch's DeepSpeed file says {section}.enabled={json.dumps(found)}, but train.precision is "
                f"{settings.precision}; leave {section} out of the file"
            )
        config[section] = {"enabled": enabled}
    if settings.precision == "bf16":
        # Modules that DeepSpeed calls safe have their gradients summed in bf16; none has, as under DDP and FSDP2.
        config["torch_autocast"] |= {"dtype": "bfloat16", "lower_precision_safe_modules": []}
    if sharded:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"


def _refuse(config: dict[str, Any]) -> None:
    zero = config["zero_optimization"]
    if repr(zero["stage"]) not in ("1", "2", "3"):  # nor true, which is 1 too
        raise ConfigError(
            f"the launch asks for ZeRO stage {json.dumps(zero['stage'])}; choose 1, 2 or 3, or launch with ddp.yaml"
        )
    if zero.get("round_robin_gradients"):
        raise ConfigError(
            "the launch's DeepSpeed file says zero_optimization.round_robin_gradients=true, under which checkpoints "
            "would mix up the weights' names; set it to false"
        )
    for section in ("optimizer", "scheduler"):
        if section in config:
            raise ConfigError(f"the launch's DeepSpeed file has a section {section}; the run's optim.* says it all")
    if zero.get("offload_param", {}).get("device") == "nvme":
        raise ConfigError(
            "the launch asks for offload_param to nvme, which DeepSpeed does only to models that are built within its "
            "zero.Init; offload parameters to cpu, and only the optimizer to nvme"
        )
    offload = zero.get("offload_optimizer", {})
    if offload.get("device") == "nvme":
        _check_nvme(zero["stage"], offload.get("nvme_path"))
    for key in ("zero_hpz_partition_size", "mics_shard_size"):
        if zero.get(key, 1) not in (-1, 0, 1):
            raise ConfigError(f"the launch's DeepSpeed file says {key}={zero[key]}, which checkpoints do not support")


def _check_nvme(stage: int, folder: Any) -> None:
    if stage != 3:
        raise ConfigError(f"the launch asks for offload_optimizer to nvme at ZeRO stage {stage}; only stage 3 has it")
    if not isinstance(folder, str) or not Path(folder).is_dir():
        raise ConfigError(
            f"the launch asks for offload_optimizer to nvme, but offload_optimizer_nvme_path={folder} is no folder; "
            "name one on a local NVMe disk"
        )
    if not can_swap():
        raise ConfigError(
            "the launch asks for offload_optimizer to nvme, for which DeepSpeed builds async_io with a C++ compiler, "
            "ninja and libaio's headers, and one is missing (apt install libaio-dev); else offload to cpu"
        )


def can_swap() -> bool:
    """Whether DeepSpeed can build what reads and writes NVMe."""
    from deepspeed.ops.op_builder import AsyncIOBuilder  # takes seconds

    return bool(AsyncIOBuilder().is_compatible())


def _fill_zero(zero: dict[str, Any], on_cuda: bool) -> None:
    """Defaults under which all stages compute the same numbers, and that fit a CPU."""
    zero["round_robin_gradients"] = False
    # DeepSpeed's default all-reduces whole buckets, of which a rank keeps its share: 3 x parameters a step, not 2.
    zero.setdefault("use_multi_rank_bucket_allreduce", False)
    if zero["stage"] == 3:
        zero["memory_efficient_linear"] = False  # it rounds the product and the bias apart from each other
        zero.setdefault("stage3_param_persistence_threshold", 0)
        zero.setdefault("stage3_max_live_parameters", LIVE_ELEMENTS)
        zero.setdefault("stage3_max_reuse_distance", 0)
    elements = BUCKET_ELEMENTS["cuda" if on_cuda else "cpu"]
    zero.setdefault("reduce_bucket_size", elements)
    zero.setdefault("allgather_bucket_size", elements)
    if not on_cuda:
        zero.setdefault("overlap_comm", False)

"""The way to the engine that the launcher asked for."""

from gptscale.config.schema import Precision
from gptscale.errors import ConfigError
from gptscale.runtime import ranks
from gptscale.runtime.engine import Engine, EngineSettings
from gptscale.runtime.launch import EngineKind, launched_engine


def start_engine(
    precision: Precision,
    accumulation: int,
    *,
    micro_batch_sequences: int = 1,
    clip_norm: float | None = None,
) -> Engine:
    """Join the other ranks and return the engine that the launcher asked for. All ranks call this."""
    kind = launched_engine()
    _check_precision(precision, kind)
    ranks.join()
    settings = EngineSettings(precision, accumulation, micro_batch_sequences, clip_norm)
    return _engine_class(kind)(settings)


def _check_precision(precision: Precision, kind: EngineKind) -> None:
    if precision == "bf16-sharded" and kind == "plain":
        raise ConfigError(
            "train.precision=bf16-sharded needs an engine that shards; use bf16, or launch with "
            "launch/accelerate/zero*.yaml, fsdp2.yaml or hsdp.yaml"
        )
    if precision == "fp16" and not ranks.has_cuda():
        raise ConfigError("train.precision=fp16 needs a CUDA device, and there is none; use bf16 or fp32")


def _engine_class(kind: EngineKind) -> type[Engine]:
    if kind == "zero":
        from gptscale.runtime.zero import ZeroEngine  # DeepSpeed takes seconds to import

        return ZeroEngine
    if kind == "fsdp2":
        from gptscale.runtime.fsdp2 import Fsdp2Engine

        return Fsdp2Engine
    return Engine

"""micro_batch_sequences: auto. The largest micro-batch that fits into memory, found once in the life of a run."""

from dataclasses import replace

from gptscale.checkpoint.layout import list_checkpoints
from gptscale.config.load import load_config
from gptscale.config.schema import Config
from gptscale.errors import TrainingError
from gptscale.planning.launch import Launch
from gptscale.planning.memory import SAFE_SHARE, memory_of, powers_with
from gptscale.runtime import ranks
from gptscale.runtime.device import free_bytes, local_device
from gptscale.runtime.launch import launched_dp_shard_size, launched_engine, launched_rank, launched_world
from gptscale.runtime.zero_config import launched_zero
from gptscale.tracking.provenance import last_start


def with_micro_batch(cfg: Config) -> Config:
    """The config with a number for micro_batch_sequences. All ranks call this together.

    It is the largest power of two that fits on every rank. A run with checkpoints keeps it, in its folder's
    config.yaml: dropout masks depend on it. Without dropout another number of ranks has its own, since a rank's share
    of a step is another, and so has a step of fewer sequences.
    """
    if cfg.train.micro_batch_sequences is not None:
        return cfg
    remembered = ranks.gather(ranks.agree(lambda: _remembered(cfg) if launched_rank() == 0 else None))[0]
    number = remembered or min(ranks.gather(ranks.agree(lambda: _largest(cfg))))
    return cfg.with_changes(train={"micro_batch_sequences": number})


def _remembered(cfg: Config) -> int | None:
    """What the last start took, if this one has to take the same."""
    path = cfg.run.dir / "config.yaml"
    if not path.exists() or not list_checkpoints(cfg.run.dir):
        return None
    if not cfg.model.drop_rate and last_start(cfg.run.dir).get("world") != launched_world():
        return None
    number = load_config(path).train.micro_batch_sequences
    return number if number is not None and number <= cfg.sequences_per_step else None


def _largest(cfg: Config) -> int:
    """The largest power of two that fits here, as `gptscale plan` counts memory, and that a step can use."""
    device = local_device()
    free = free_bytes(device) * SAFE_SHARE
    launch = launch_of_this_process()

    def needed(launch: Launch) -> int:
        memory = memory_of(cfg, launch)
        return memory.total + (0 if device.type == "cuda" else memory.host)

    largest = max(powers_with(cfg, launch, lambda launch: needed(launch) <= free), default=0)
    if not largest:
        least = needed(replace(launch, micro_batch_sequences=1)) / 1e9
        raise TrainingError(
            f"not even one sequence fits: {free / 1e9:.1f} GB of memory can be used, and with weights, gradients and "
            f"optimizer it takes {least:.1f} GB; set train.activation_checkpointing=true, lower "
            "model.context_length, or shard with launch/accelerate/zero3.yaml"
        )
    return largest


def launch_of_this_process() -> Launch:
    """What the launcher set up, in the planner's words."""
    world, kind = launched_world(), launched_engine()
    if kind == "zero":
        return Launch(launched_zero(), world)
    if kind == "plain":
        return Launch("ddp" if world > 1 else "none", world)
    shard = launched_dp_shard_size()
    return Launch("fsdp2", world) if shard == world else Launch("hsdp", world, dp_shard_size=shard)

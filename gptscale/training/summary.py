"""What a start says of its run before the first step."""

from collections.abc import Iterator

import torch

from gptscale.config.schema import Config
from gptscale.data.corpora import Corpora
from gptscale.model.gpt import GPTModel
from gptscale.runtime.device import computes_bf16, describe_device
from gptscale.runtime.engine import Engine
from gptscale.training.plan import Plan


def summary(cfg: Config, plan: Plan, engine: Engine, model: GPTModel, corpora: Corpora) -> list[str]:
    """The model, data, length and place of a run, a line each, and what makes it slow."""
    tokens = plan.tokens_at(plan.total_steps)
    return [
        f"model: {model.num_parameters():,} parameters, context {cfg.model.context_length}",
        f"data: {len(corpora.train):,} training and {len(corpora.val):,} validation tokens, "
        f"fingerprint {corpora.fingerprint[:12]}",
        f"run: {plan.total_steps:,} steps of {plan.tokens_per_step:,} tokens = {tokens:,} tokens, "
        f"{plan.epoch_at(plan.total_steps):.2f} epochs, into {cfg.run.dir}",
        f"device: {describe_device(engine.device)}, {engine.world} x {plan.accumulation} micro-batches of "
        f"{plan.micro_batch_sequences} sequences, {cfg.train.precision}, engine {engine.name}"
        f"{_copies(engine)}{_filling(plan)}",
        *_advice(engine),
    ]


def _copies(engine: Engine) -> str:
    return f" with {engine.world // engine.dp_shard_size} copies of the state" if engine.name == "hsdp" else ""


def _advice(engine: Engine) -> Iterator[str]:
    """What makes a run needlessly slow on this machine, and the setting that helps."""
    if engine.dtype == torch.bfloat16 and not computes_bf16(engine.device):
        better = "fp16" if engine.device.type == "cuda" else "fp32"
        yield f"slow: this {engine.device.type.upper()} has no bf16 in hardware; use train.precision={better} here"


def _filling(plan: Plan) -> str:
    """What it costs that the ranks do not divide the step."""
    if not plan.filler_sequences:
        return ""
    share = plan.filler_sequences / (plan.filler_sequences + plan.sequences_per_step)
    return f"; {plan.filler_sequences} of them are filling of weight zero, {share:.0%} of the work"

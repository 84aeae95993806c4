"""micro_batch_sequences: auto. The largest micro-batch that fits into memory, found once in the life of a run."""

from pathlib import Path

import torch
from torch import Tensor

from gptscale.config.load import load_config
from gptscale.config.schema import Config
from gptscale.errors import TrainingError
from gptscale.model.gpt import GPTModel
from gptscale.model.size import LOGITS_PER_CHUNK, padded_vocab_size
from gptscale.runtime import ranks
from gptscale.runtime.device import free_bytes, local_device
from gptscale.runtime.launch import launched_engine, launched_world

SAFE_SHARE = 0.8
"""Of the free memory; the rest is for what allocators and libraries take beside our tensors."""


def with_micro_batch(cfg: Config) -> Config:
    """The config with a number for micro_batch_sequences. All ranks call this together.

    A run keeps the number of its first start, in its folder's config.yaml: dropout masks depend on it.
    Otherwise it is the largest power of two that fits on every rank.
    """
    if cfg.train.micro_batch_sequences is not None:
        return cfg
    remembered = ranks.gather(_remembered(cfg.run.dir / "config.yaml"))[0]
    number = remembered or min(ranks.gather(ranks.agree(lambda: _largest(cfg))))
    return cfg.model_copy(update={"train": cfg.train.model_copy(update={"micro_batch_sequences": number})})


def _remembered(path: Path) -> int | None:
    return load_config(path).train.micro_batch_sequences if path.exists() else None


def _largest(cfg: Config) -> int:
    """The largest power of two that fits here and that a step can use."""
    device = local_device()
    free = free_bytes(device) * SAFE_SHARE
    model = GPTModel(cfg.model, seed=0).to(device)
    model.recompute = cfg.train.activation_checkpointing
    parameters = sum(p.numel() for p in model.parameters())
    once = _fixed_bytes(cfg, parameters)
    each = (_activation_bytes(model, cfg, 4) - _activation_bytes(model, cfg, 2)) / 2
    fitting = int((free - once) // each)
    if fitting < 1:
        raise TrainingError(
            f"not even one sequence fits: {free / 1e9:.1f} GB of memory, {once / 1e9:.1f} GB for weights, gradients "
            f"and optimizer, {each / 1e9:.2f} GB for each sequence; set train.activation_checkpointing=true, "
            "lower model.context_length, or shard with launch/accelerate/zero3.yaml"
        )
    usable = -(-cfg.sequences_per_step // launched_world())
    return 1 << (min(fitting, usable).bit_length() - 1)


def _fixed_bytes(cfg: Config, parameters: int) -> int:
    """What does not grow with the micro-batch: fp32 weights, gradients and moments, and the head's chunk of logits."""
    world = launched_world()
    shared = {"plain": 1, "zero": 1, "fsdp2": world}[launched_engine()]
    moments = {"plain": 1, "zero": world, "fsdp2": world}[launched_engine()]
    state = 8 * parameters // shared + 8 * parameters // moments
    vocab = padded_vocab_size(cfg.model.vocab_size)
    return state + 3 * 4 * LOGITS_PER_CHUNK + 4 * vocab * cfg.model.emb_dim


def _activation_bytes(model: GPTModel, cfg: Config, sequences: int) -> int:
    """What a forward keeps for the backward, and one block again where blocks are recomputed."""
    kept = _saved_bytes(model, cfg, sequences)
    if not model.recompute:
        return kept
    model.recompute = False
    whole = _saved_bytes(model, cfg, sequences)
    model.recompute = True
    return kept + whole // cfg.model.n_layers


def _saved_bytes(model: GPTModel, cfg: Config, sequences: int) -> int:
    device = model.tok_emb.weight.device
    seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    total = 0

    def note(t: Tensor) -> Tensor:
        nonlocal total
        storage = t.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
        return t

    tokens = torch.zeros(sequences, cfg.model.context_length, dtype=torch.int64, device=device)
    half = {"fp32": None, "fp16": torch.float16}.get(cfg.train.precision, torch.bfloat16)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda t: t),
        torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None),
    ):
        model(tokens, tokens)
    return total

"""What a model really takes on a CPU, counted in two ways."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from gptscale.config.schema import Config
from gptscale.model.gpt import GPTModel


def new_model(cfg: Config) -> GPTModel:
    """The model of a config as its run would have it: 16-bit weights in bf16-sharded, blocks computed again or not."""
    model = GPTModel(cfg.model, seed=1)
    model.recompute = cfg.train.activation_checkpointing
    return model.bfloat16() if cfg.train.precision == "bf16-sharded" else model


def loss_of(model: GPTModel, cfg: Config, sequences: int) -> Tensor:
    """The loss of one micro-batch in the precision of a run."""
    tokens = torch.zeros(sequences, cfg.model.context_length, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cfg.train.precision == "bf16"):
        return model(tokens, tokens)  # type: ignore[no-any-return]


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass, parameters left out."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors too, so that no address comes twice

    def note(t: Tensor) -> Tensor:
        kept.setdefault(t.untyped_storage().data_ptr(), t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        forward()
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in known)


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes that torch's allocator had given out at one time during some work, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        work()
    events = record.profiler.kineto_results.events()  # type: ignore[union-attr]
    now = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()  # less than zero where memory is given back
        most = max(most, now)
    return most

"""FSDP2, PyTorch's own: every rank owns its rows of every tensor. Accelerate's form of it does not run on CPUs.

A launch may ask for copies (HSDP): the ranks of a machine share one, and only gradients go between machines.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from gptscale.errors import ConfigError
from gptscale.runtime import ranks
from gptscale.runtime.engine import Engine, EngineSettings
from gptscale.runtime.fragments import Fragment, fragment_of, materialize_state, share
from gptscale.runtime.launch import PARALLELISM_ASKED, launched_dp_shard_size, unsaid
from gptscale.runtime.muon_exchange import has_muon
from gptscale.runtime.row_muon import RowMuon, first_element, local_rows
from gptscale.runtime.unfilled import Unfilled


class Fsdp2Engine(Engine):
    """Weights, gradients and optimizer state sharded by rows; blocks are gathered when they compute.

    bf16 and fp16 are autocast over fp32 weights, as under DDP, so that the numbers are the same; gathers move fp32.
    bf16-sharded gathers and computes in bf16 from sharded fp32 weights, and reduces gradients in fp32.
    """

    def __init__(self, settings: EngineSettings) -> None:
        if os.environ.get("FSDP_VERSION", "2") != "2":
            raise ConfigError(f"the launch asks for FSDP {os.environ['FSDP_VERSION']}; set fsdp_version: 2")
        super().__init__(settings)
        self.dp_shard_size = _agreed_dp_shard_size()
        self._copies = self.world // self.dp_shard_size
        self.name = "fsdp2" if self._copies == 1 else "hsdp"

    def _start_accelerator(self) -> Accelerator:
        with unsaid("ACCELERATE_USE_FSDP", PARALLELISM_ASKED):  # Accelerate is to know of the ranks only
            return Accelerator(
                cpu=not ranks.has_cuda(),
                mixed_precision="no",
                gradient_accumulation_plugin=self._accumulation(),
            )

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, compile_model: bool) -> None:
        """Put the model and its optimizer under the engine; afterwards use `model` and `optimizer`."""
        mesh = ranks.grid(self.device.type, self.dp_shard_size)
        names = {p: name for name, p in model.named_parameters()}
        policy = MixedPrecisionPolicy()
        if self.settings.precision == "bf16-sharded":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in model.blocks:  # type: ignore[union-attr]
            Unfilled(self.device).fill(block)  # one after the other, and each forgotten, so that no rank holds them all
            if compile_model:
                block.compile()
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=not _keeps_gathered())
        Unfilled(self.device).fill(model)
        if compile_model:
            model.out_head.compile(dynamic=False)  # type: ignore[union-attr]  # the loss is written for that
        fully_shard(model, mesh=mesh, mp_policy=policy)
        sharded = dict(model.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [sharded[names[p]] for p in group["params"]]
        self.bare_model = self.model = model
        self.optimizer = RowMuon(optimizer.param_groups, self.device) if has_muon(optimizer) else optimizer
        if self.settings.precision in ("bf16", "fp16"):
            self._autocast_forward(model)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Around each micro-batch: only the last of a step exchanges gradients between ranks."""
        with self._accelerator.accumulate():
            self.model.set_requires_gradient_sync(self._accelerator.sync_gradients)
            yield

    def update(self, clip_norm: float | None) -> Tensor:
        """Clip, update the weights, drop the gradients; returns the norm before clipping, on the device."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        if self._loss_scale is not None:
            self._loss_scale.unscale([p.grad.to_local() for p in parameters])
        norm = get_total_norm([p.grad for p in parameters])
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self._copies > 1:  # they stay the same to the last bit, in whatever order each has added
            dist.broadcast(whole, src=0)
        if clip_norm is not None:
            clip_grads_with_norm_(parameters, clip_norm, whole)
        self.optimizer.found_inf = (~whole.isfinite()).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self._loss_scale is not None:
            self._loss_scale.update(whole)
        return whole

    def owned_fragments(self) -> list[Fragment]:
        """This rank's share of the training state, for a checkpoint."""
        return self._of_one_copy(self._state())

    def wanted_fragments(self) -> list[Fragment]:
        """The ranges this rank has to fill on a resume; creates the optimizer's state."""
        materialize_state(self.optimizer)
        return self._state()

    def weight_fragments(self) -> list[Fragment]:
        """The ranges of the weights alone, as far as this rank holds them, before the first step."""
        return self._state()

    def loaded(self) -> None:
        """Put what was written into the wanted fragments to use: they are what the engine computes with."""

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients; weights that no backward pass lets go are gathered until its end."""
        with super().evaluating():
            try:
                yield
            finally:
                for module in self.model.modules():
                    if isinstance(module, FSDPModule):
                        module.reshard()

    def _updated_fragments(self) -> list[Fragment]:
        """This rank's share of the weights that are being updated, and of their gradients."""
        return self._of_one_copy(self._fragments(lambda p: {"gradient": p.grad}))

    def _state(self) -> list[Fragment]:
        return self._fragments(lambda p: self.optimizer.state[p])

    def _of_one_copy(self, fragments: list[Fragment]) -> list[Fragment]:
        """What this rank answers for where other copies hold the same."""
        return list(share(fragments, self.rank // self.dp_shard_size, self._copies))

    def _fragments(self, state_of: Callable[[nn.Parameter], Mapping[str, Any]]) -> list[Fragment]:
        named = self.model.named_parameters()
        mine = (fragment_of(name, p.shape, first_element(p), p, state_of(p), local_rows) for name, p in named)
        return [f for f in mine if f.numel]


def _agreed_dp_shard_size() -> int:
    """What the launch says on every rank. Machines with unequal numbers of ranks have no copy of one size each."""
    sizes = sorted(set(ranks.gather(ranks.agree(launched_dp_shard_size))))
    if len(sizes) > 1:
        raise ConfigError(
            f"machines have from {sizes[0]} to {sizes[-1]} ranks, and no copy of the state of one size each; "
            "set dp_shard_size of parallelism_config"
        )
    return sizes[0]


def _keeps_gathered() -> bool:
    """Whether the launch wants a block's weights kept from forward to backward: less to send, for more memory."""
    return os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() in {"0", "false", "no"}

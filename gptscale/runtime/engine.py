"""The engine of a run, and its plainest forms: one process, or DDP. The loop sees no difference."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from torch import Tensor, nn

from gptscale.config.schema import Precision
from gptscale.errors import TrainingError
from gptscale.runtime import ranks
from gptscale.runtime.fragments import (
    Fragment,
    materialize_state,
    share,
    whole_fragments,
)
from gptscale.runtime.launch import check_launch_agrees, launched_rank, launched_world, says_yes, unsaid
from gptscale.runtime.loss_scale import LossScale
from gptscale.runtime.unfilled import Unfilled

T = TypeVar("T")

LEAVING_OUT = ("cpu", "cuda")
"""Devices whose fused optimizers change nothing where `found_inf` is set; MPS's has not always looked at it."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16-sharded": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class EngineSettings:
    """What an engine has to know of a run's config."""

    precision: Precision
    accumulation: int
    """Micro-batches of one rank in a step."""
    micro_batch_sequences: int = 1
    clip_norm: float | None = None


class Engine:
    """No wrapper or DDP: every rank holds all weights. Made by `start_engine`."""

    def __init__(self, settings: EngineSettings) -> None:
        ranks.agree(lambda: check_launch_agrees(settings.precision, settings.accumulation, settings.clip_norm))
        self.settings = settings
        self._accelerator = self._start_accelerator()
        self.device: torch.device = self._accelerator.device
        self.rank = launched_rank()
        self.world = launched_world()
        self.dtype = _DTYPES[settings.precision]
        self._loss_scale = LossScale(self.device) if settings.precision == "fp16" else None
        self.name = "ddp" if self.world > 1 else "none"
        self.dp_shard_size = 1
        """Ranks that hold one copy of the state between them."""
        self._check_world()

    def _start_accelerator(self) -> Accelerator:
        several = launched_world() > 1
        # Left in a shell, LOCAL_RANK would have Accelerate look for a place to meet, for one process too.
        with unsaid(*(() if several else ("LOCAL_RANK",))):
            return Accelerator(
                cpu=says_yes("ACCELERATE_USE_CPU") or (several and not ranks.has_cuda()),  # else MPS may serve
                mixed_precision="bf16" if self.settings.precision == "bf16" else "no",  # fp16 is our own, see LossScale
                gradient_accumulation_plugin=self._accumulation(),
                kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
            )

    def _accumulation(self) -> GradientAccumulationPlugin:
        """As a plugin: a number by itself would give way to a variable of the environment."""
        return GradientAccumulationPlugin(num_steps=self.settings.accumulation)

    def _check_world(self) -> None:
        seen = (self._accelerator.process_index, self._accelerator.num_processes)
        if seen != (self.rank, self.world):
            raise TrainingError(
                f"the launcher started {self.world} processes, but Accelerate sees {seen[1]} and rank {seen[0]} "
                f"where this is rank {self.rank}; launch with one of launch/accelerate/*.yaml"
            )

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for all."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print a line, once for all ranks; a reader who is gone ends no run."""
        if self.is_first:
            with suppress(OSError):
                print(text, flush=True)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, compile_model: bool) -> None:
        """Put the model and its optimizer under the engine; afterwards use `model` and `optimizer`.

        A model on the meta device gets weights here that are to be filled afterwards, each rank its share.
        """
        self.bare_model = model
        unfilled = Unfilled(self.device)
        unfilled.fill(model)
        unfilled.replace(optimizer)
        if self.settings.precision == "fp16":
            self._autocast_forward(model)
        if compile_model:
            model.compile(dynamic=False)  # batches have one shape
        self.model, self._wrapped_optimizer = self._accelerator.prepare(model, optimizer)
        self.optimizer: torch.optim.Optimizer = optimizer

    def _autocast_forward(self, model: nn.Module) -> None:
        """Let a model compute in 16 bits, whoever calls it; a cache would keep a rounded copy of every weight."""
        autocast = torch.autocast(self.device.type, self.dtype, cache_enabled=False)
        model.forward = autocast(model.forward)

    def set_lr(self, lr: float) -> None:
        """The learning rate of the coming update. Call it before the first micro-batch of a step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def accumulate(self) -> AbstractContextManager[None]:
        """Around each micro-batch: only the last of a step exchanges gradients between ranks."""
        return self._accelerator.accumulate(self.model)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients; divides by the number of micro-batches of a step."""
        self._accelerator.backward(loss if self._loss_scale is None else loss * self._loss_scale.scale)

    def update(self, clip_norm: float | None) -> Tensor:
        """Clip, update the weights, drop the gradients; returns the norm before clipping, on the device.

        Gradients that are not finite change nothing: the fused optimizers skip such an update on the
        device, so the host need not wait to look at it, except on devices whose optimizers do not.
        """
        limit = float("inf") if clip_norm is None else clip_norm
        if self._loss_scale is not None:
            self._loss_scale.unscale([p.grad for p in self.model.parameters() if p.grad is not None])
        norm: Tensor = self._accelerator.clip_grad_norm_(self.model.parameters(), limit)
        if self.device.type in LEAVING_OUT:
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        if self.device.type in LEAVING_OUT or norm.isfinite():
            self._wrapped_optimizer.step()
        # DDP's buckets are the gradients. Dropped ones would be summed beside them over the micro-batches, and copied
        # there with the last; where there is one micro-batch, they are copied as they come, which is the cheaper.
        self._wrapped_optimizer.zero_grad(set_to_none=self.world == 1 or self.settings.accumulation == 1)
        if self._loss_scale is not None:
            self._loss_scale.update(norm)
        return norm

    @contextmanager
    def observing(self, see: Callable[[list[Fragment]], None]) -> Iterator[None]:
        """Within it, an update shows `see` this rank's share of the weights and gradients before it changes them.

        Gradients are as the optimizer takes them, clipped. ZeRO updates in pieces, and calls `see` for each; every
        rank as often as the others.
        """
        hook = self.optimizer.register_step_pre_hook(lambda *_: see(self._updated_fragments()))
        try:
            yield
        finally:
            hook.remove()

    def _updated_fragments(self) -> list[Fragment]:
        """This rank's share of the weights that are being updated, and of their gradients."""
        return list(share(whole_fragments(self.bare_model, lambda p: {"gradient": p.grad}), self.rank, self.world))

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        value = value.clone()
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def max_over_ranks(self, value: Tensor) -> Tensor:
        """The largest over all ranks, element by element."""
        value = value.clone()
        if self.world > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def each_rank(self, *mine: float) -> list[list[float]]:
        """For each of these numbers (float32) what it is on every rank; a thousand ranks exchange them at once."""
        table = torch.zeros(len(mine), self.world, device=self.device)
        table[:, self.rank] = torch.tensor(mine)
        return self.sum_over_ranks(table).tolist()

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether it is set on any rank, in one exchange; the same answers on all."""
        return ranks.any_of(*flags)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        return ranks.gather(value)

    def agree(self, work: Callable[[], T]) -> T:
        """Do work on this rank; if it failed on any rank, raise on all, with the first one's message."""
        return ranks.agree(work)

    def owned_fragments(self) -> list[Fragment]:
        """This rank's share of the training state, for a checkpoint."""
        return self._share_of(self.rank)

    def wanted_fragments(self) -> list[Fragment]:
        """The ranges this rank has to fill on a resume; creates the optimizer's state."""
        materialize_state(self.optimizer)
        return self._share_of(self.rank)

    def weight_fragments(self) -> list[Fragment]:
        """The ranges of the weights alone, as far as this rank holds them, before the first step."""
        return self._whole_state()

    def loaded(self) -> None:
        """Put what was written into the wanted fragments to use. All ranks call this together.

        Each rank has read its share from disk, and here tells it to the others.
        """
        if self.world > 1:
            for rank in range(self.world):
                for f in self._share_of(rank):
                    for tensor in (*f.tensors.values(), *f.scalars.values()):
                        dist.broadcast(tensor, src=rank)

    def _share_of(self, rank: int) -> list[Fragment]:
        return list(share(self._whole_state(), rank, self.world))

    def _whole_state(self) -> list[Fragment]:
        return whole_fragments(self.bare_model, lambda p: self.optimizer.state[p])

    def parameter_names(self) -> list[str]:
        """All parameters of the model, by the names that checkpoints use."""
        return [name for name, _ in self.bare_model.named_parameters()]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients."""
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train()

    def scaler_state(self) -> dict[str, Any]:
        """fp16's loss scale; empty in other precisions."""
        return self._loss_scale.state() if self._loss_scale is not None else {}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Continue with a saved loss scale."""
        if self._loss_scale is not None and state:
            self._loss_scale.load(state)

    def close(self, *, together: bool = True) -> None:
        """Forget Accelerate's process-wide state, so that a next run can start.

        Memory is given back if all ranks close together: CUDA would first wait for what it is at work on, such as an
        exchange with a rank that is gone.
        """
        if together or self.world == 1:
            self._accelerator.free_memory()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

"""The engine of a run: one process or many, as the launcher set it up. The loop sees no difference."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from gptscale import errors
from gptscale.config.schema import Precision
from gptscale.errors import ConfigError, GptscaleError, TrainingError
from gptscale.runtime.fragments import Fragment, materialize_state, parameter_name, share, whole_fragments

T = TypeVar("T")

COLLECTIVE_TIMEOUT_S = 600.0
"""How long a rank waits for the others before it gives up; GPTSCALE_COLLECTIVE_TIMEOUT_S overrides it."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def launched_rank() -> int:
    """This process among those the launcher started."""
    return int(os.environ.get("RANK", "0"))


def launched_world() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Engine:
    """No wrapper or DDP: every rank holds all weights. Made by `start_engine`."""

    def __init__(self, precision: Precision, accumulation: int) -> None:
        self._accelerator = _start_accelerator(precision, accumulation)
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes
        self.dtype = _DTYPES[precision]
        self.name = "ddp" if self.world > 1 else "none"

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for all."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print a line, once for all ranks."""
        if self.is_first:
            print(text, flush=True)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, compile_model: bool) -> None:
        """Put the model and its optimizer under the engine; afterwards use `model` and `optimizer`."""
        self.bare_model = model
        if compile_model:
            model.compile()
        self.model, self._wrapped_optimizer = self._accelerator.prepare(model, optimizer)
        self.optimizer: torch.optim.Optimizer = optimizer

    def set_lr(self, lr: float) -> None:
        """The learning rate of the coming update. Call it before the first micro-batch of a step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def accumulate(self) -> AbstractContextManager[None]:
        """Around each micro-batch: only the last of a step exchanges gradients between ranks."""
        return self._accelerator.accumulate(self.model)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients; divides by the number of micro-batches of a step."""
        self._accelerator.backward(loss)

    def update(self, clip_norm: float | None) -> Tensor:
        """Clip, update the weights, drop the gradients; returns the norm before clipping, on the device.

        Gradients that are not finite change nothing: the fused optimizers skip such an update on the
        device, so the host need not wait to look at it.
        """
        limit = float("inf") if clip_norm is None else clip_norm
        norm: Tensor = self._accelerator.clip_grad_norm_(self.model.parameters(), limit)
        if self._accelerator.scaler is None:
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self._wrapped_optimizer.step()
        self._wrapped_optimizer.zero_grad()
        return norm

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        return self._accelerator.reduce(value, "sum")  # type: ignore[no-any-return]

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; the same answer on all."""
        if self.world == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.device)
        return bool(self.total(votes) > 0)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def agree(self, work: Callable[[], T]) -> T:
        """Do work on this rank; if it failed on any rank, raise on all, with the first one's message."""
        try:
            result, failure = work(), None
        except Exception as error:
            if self.world == 1:
                raise
            result, failure = None, error
        said = self.gather(None if failure is None else (type(failure).__name__, str(failure)))
        first = next((r for r, what in enumerate(said) if what is not None), None)
        if first is None:
            return result  # type: ignore[return-value]
        kind, message = said[first]  # type: ignore[misc]
        raise _as_error(kind, message, first) from failure

    def owned_fragments(self) -> list[Fragment]:
        """This rank's share of the training state, for a checkpoint."""
        return list(share(whole_fragments(self.bare_model, self.optimizer), self.rank, self.world))

    def wanted_fragments(self) -> list[Fragment]:
        """The ranges this rank has to fill on a resume; creates the optimizer's state."""
        materialize_state(self.optimizer)
        return whole_fragments(self.bare_model, self.optimizer)

    def parameter_names(self) -> list[str]:
        """All parameters of the model, by the names that checkpoints use."""
        return [parameter_name(name) for name, _ in self.bare_model.named_parameters()]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(was_training)

    def scaler_state(self) -> dict[str, Any]:
        """fp16's loss scale; empty in other precisions."""
        return self._accelerator.scaler.state_dict() if self._accelerator.scaler else {}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Continue with a saved loss scale."""
        if self._accelerator.scaler and state:
            self._accelerator.scaler.load_state_dict(state)

    def close(self) -> None:
        """Leave the process group and forget Accelerate's process-wide state, so that a next run can start."""
        self._accelerator.free_memory()
        if self.world > 1:
            dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def start_engine(precision: Precision, accumulation: int) -> Engine:
    """Join the other ranks and return the engine that the launcher asked for."""
    if precision == "bf16-sharded":
        raise ConfigError("train.precision=bf16-sharded needs DeepSpeed ZeRO; use bf16, or launch with a zero*.yaml")
    if precision == "fp16" and not _has_cuda():
        raise ConfigError("train.precision=fp16 needs a CUDA device, and there is none; use bf16 or fp32")
    engine = Engine(precision, accumulation)
    if engine.world != launched_world():
        raise TrainingError(
            f"the launcher started {launched_world()} processes, but Accelerate sees {engine.world}; "
            "launch with one of launch/accelerate/*.yaml"
        )
    return engine


def _start_accelerator(precision: Precision, accumulation: int) -> Accelerator:
    handlers: list[Any] = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    if launched_world() > 1:
        timeout_s = float(os.environ.get("GPTSCALE_COLLECTIVE_TIMEOUT_S", COLLECTIVE_TIMEOUT_S))
        # On a CPU Accelerate guesses the backend wrong under DeepSpeed, and then sees a world of one.
        backend = None if _has_cuda() else "gloo"
        handlers.append(InitProcessGroupKwargs(backend=backend, timeout=timedelta(seconds=timeout_s)))
    return Accelerator(
        mixed_precision={"fp32": "no"}.get(precision, precision),
        gradient_accumulation_steps=accumulation,
        kwargs_handlers=handlers,
    )


def _has_cuda() -> bool:
    refused = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in {"1", "true", "yes"}
    return torch.cuda.is_available() and not refused


def _as_error(kind: str, message: str, rank: int) -> GptscaleError:
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, GptscaleError):
        return known(message)
    return TrainingError(f"rank {rank} failed with {kind}: {message}")

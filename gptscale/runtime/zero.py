"""DeepSpeed ZeRO-1, 2 and 3 through Accelerate."""

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import deepspeed
import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
from torch import Tensor, nn

from gptscale.errors import ConfigError
from gptscale.runtime import ranks
from gptscale.runtime.engine import Engine, EngineSettings
from gptscale.runtime.fragments import Fragment
from gptscale.runtime.launch import launched_world
from gptscale.runtime.unfilled import Unfilled, is_unfilled
from gptscale.runtime.zero_config import zero_config
from gptscale.runtime.zero_fragments import check_links, materialize_zero_state, publish_weights, zero_fragments


class ZeroEngine(Engine):
    """Each rank owns a share of the optimizer's state (1), also of the gradients (2), also of the weights (3).

    DeepSpeed leaves out an update whose gradient norm is not finite. It would also update within `backward`;
    here its two halves are called by themselves, so that `update` means the same under every engine.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._config = zero_config(settings, launched_world(), ranks.has_cuda())
        self._stage: int = self._config["zero_optimization"]["stage"]
        super().__init__(settings)
        self.name = f"zero{self._stage}"

    def _start_accelerator(self) -> Accelerator:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        with _without("ACCELERATE_CONFIG_DS_FIELDS"):  # the configuration is complete; the launch file is part of it
            zero = self._config["zero_optimization"]
            plugin = DeepSpeedPlugin(
                hf_ds_config=self._config,
                zero_stage=self._stage,
                gradient_accumulation_steps=self.settings.accumulation,
                gradient_clipping=self._config["gradient_clipping"],
                offload_optimizer_device=zero.get("offload_optimizer", {}).get("device", "none"),
                offload_param_device=zero.get("offload_param", {}).get("device", "none"),
                zero3_init_flag=False,  # constructors would see empty parameters
            )
        # On a CPU Accelerate guesses the backend wrong under DeepSpeed, and then sees a world of one.
        return Accelerator(
            mixed_precision="bf16" if self.settings.precision == "bf16-sharded" else "no",
            gradient_accumulation_steps=self.settings.accumulation,
            deepspeed_plugin=plugin,
            kwargs_handlers=[InitProcessGroupKwargs(backend=None if ranks.has_cuda() else "gloo")],
        )

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, compile_model: bool) -> None:
        """Put the model and its optimizer under the engine; afterwards use `model` and `optimizer`."""
        if not isinstance(optimizer, torch.optim.AdamW):
            raise ConfigError(
                "optim.name=muon needs whole matrices, and ZeRO cuts them into flat pieces; use optim.name=adamw, or "
                "launch with launch/accelerate/ddp.yaml or fsdp2.yaml"
            )
        initial = None
        if is_unfilled(model):
            self._fill(model, optimizer)
        elif self.settings.precision == "bf16-sharded":
            initial = {name: p.detach().float().cpu().flatten() for name, p in model.named_parameters()}
        super().prepare(model, optimizer, compile_model=False)
        if compile_model:
            self.model.compile(backend="inductor")  # DeepSpeed's own, which keeps its hooks out of the graphs
        self._zero = self.model.optimizer
        if self.model.gradient_accumulation_steps() != self.settings.accumulation:
            raise ConfigError(
                f"DeepSpeed accumulates {self.model.gradient_accumulation_steps()} micro-batches, "
                f"not {self.settings.accumulation}; leave gradient_accumulation_steps out of the launch"
            )
        if initial is not None:  # DeepSpeed makes its fp32 weights from rounded ones
            for f in zero_fragments(model, self._zero, self._stage):
                f.tensors["weight"].copy_(initial[f.name][f.start : f.start + f.numel])
            publish_weights(model, self._zero, self._stage)

    def _fill(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Give a model on the meta device weights; under ZeRO-3 module by module, so that no rank holds them all."""
        sharded = self.settings.precision == "bf16-sharded"
        unfilled = Unfilled(self.device, torch.bfloat16 if sharded else None)
        if self._stage == 3:
            for module in [*model.blocks, model]:  # type: ignore[misc]
                unfilled.fill(module)
                deepspeed.zero.Init(module=module, config_dict_or_path=self._config, mem_efficient_linear=False)
        unfilled.fill(model)
        unfilled.replace(optimizer)

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients; divides by the number of micro-batches of a step."""
        self.model.set_gradient_accumulation_boundary(is_boundary=self._accelerator.sync_gradients)
        self.model.backward(loss)

    def update(self, clip_norm: float | None) -> Tensor:
        """Clip, update the weights, drop the gradients; returns the norm before clipping, on the device."""
        self._zero.clip_grad = clip_norm or 0.0
        self.model.step()
        norm = self.model.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32, device=self.device)

    def owned_fragments(self) -> list[Fragment]:
        """This rank's share of the training state, for a checkpoint; raises CheckpointError if it is mixed up."""
        self.agree(lambda: check_links(self.bare_model, self._zero, self._stage))
        return list(zero_fragments(self.bare_model, self._zero, self._stage))

    def wanted_fragments(self) -> list[Fragment]:
        """The ranges this rank has to fill on a resume; creates the optimizer's state."""
        materialize_zero_state(self._zero, self._stage)
        return list(zero_fragments(self.bare_model, self._zero, self._stage))

    def weight_fragments(self) -> list[Fragment]:
        """The ranges of the weights alone, as far as this rank holds them, before the first step."""
        return list(zero_fragments(self.bare_model, self._zero, self._stage))

    def loaded(self) -> None:
        """Put what was written into the wanted fragments to use. All ranks call this together."""
        publish_weights(self.bare_model, self._zero, self._stage)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients, in the precision of training also for the bare model."""
        with super().evaluating(), self._autocast():
            yield

    def _autocast(self) -> AbstractContextManager[Any]:
        enabled = self.settings.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


@contextmanager
def _without(variable: str) -> Iterator[None]:
    """Hide an environment variable."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value

"""DeepSpeed ZeRO-1, 2 and 3 through Accelerate."""

import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import deepspeed
import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
from deepspeed.runtime import compiler
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError
from torch import Tensor, nn
from torch.distributed import distributed_c10d as c10d

from gptscale.errors import ConfigError
from gptscale.runtime import ranks
from gptscale.runtime.engine import Engine, EngineSettings
from gptscale.runtime.fragments import Fragment
from gptscale.runtime.launch import launched_world, unsaid
from gptscale.runtime.muon_exchange import has_muon
from gptscale.runtime.scratch import Scratch
from gptscale.runtime.unfilled import Unfilled, is_unfilled
from gptscale.runtime.zero_config import launched_zero, zero_config
from gptscale.runtime.zero_fragments import (
    check_deepspeed,
    check_links,
    flat_tensors,
    materialize_zero_state,
    piece_with_gradient,
    publish_weights,
    put_back,
    zero_fragments,
    zero_pieces,
)
from gptscale.runtime.zero_muon import ZeroMuon

# What DeepSpeed calls at every step has other names since torch 2.13.
warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)


class _Plugin(DeepSpeedPlugin):  # type: ignore[misc]
    """Accelerate's, without its word to transformers, which need not be installed and takes seconds to import."""

    def set_deepspeed_weakref(self) -> None:
        """Tell transformers nothing: it builds no model here."""


class ZeroEngine(Engine):
    """Each rank owns a share of the optimizer's state (1), also of the gradients (2), also of the weights (3).

    ZeRO-1 keeps a step's gradients whole on every rank and exchanges them once. ZeRO-2 and 3 reduce them to their
    owners in every micro-batch: DeepSpeed's `coalesce_grad_reduction` would send as little as ZeRO-1, but keeps them
    whole as well, and that memory is what these stages save.

    DeepSpeed leaves out an update whose gradient norm is not finite. It would also update within `backward`;
    here its two halves are called by themselves, so that `update` means the same under every engine.
    """

    def __init__(self, settings: EngineSettings) -> None:
        if torch.cuda.is_available() and not ranks.has_cuda():
            raise ConfigError(
                "DeepSpeed takes the GPUs that it sees, whatever ACCELERATE_USE_CPU says; hide them with "
                "CUDA_VISIBLE_DEVICES="
            )
        self._config = ranks.agree(lambda: zero_config(settings, launched_world(), ranks.has_cuda()))
        self._stage: int = self._config["zero_optimization"]["stage"]
        ranks.agree(lambda: check_zero(self._config["zero_optimization"]))
        ranks.agree(lambda: self._use_own_folder(self._config["zero_optimization"].get("offload_optimizer", {})))
        super().__init__(settings)
        self.name = launched_zero()
        self.dp_shard_size = self.world

    def _use_own_folder(self, offload: dict[str, Any]) -> None:
        """On NVMe DeepSpeed names its files by rank only, so that two runs on one disk would mix them up."""
        self._scratch = None
        if offload.get("device") == "nvme":
            self._scratch = Scratch(Path(offload["nvme_path"]), "gptscale-swap-")
            offload["nvme_path"] = str(self._scratch.path)

    def _start_accelerator(self) -> Accelerator:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        if not ranks.has_cuda():
            # A kernel for inference, which every start would compile or load under a lock file. A rank that is killed
            # meanwhile leaves the file, and all later starts on this home directory would wait for it for ever.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        with unsaid("ACCELERATE_CONFIG_DS_FIELDS"):  # the configuration is complete; the launch file is part of it
            plugin = _Plugin(
                hf_ds_config=self._config,
                gradient_clipping=self._config["gradient_clipping"],  # else "none" of the environment were no number
                zero3_init_flag=False,  # constructors would see empty parameters
            )
        # On a CPU Accelerate guesses the backend wrong under DeepSpeed, and then sees a world of one.
        backend = None if ranks.has_cuda() else "gloo"
        with unsaid("ACCELERATE_USE_CPU"):  # with it Accelerate would leave DeepSpeed out
            return Accelerator(
                mixed_precision="bf16" if self.settings.precision == "bf16-sharded" else "no",
                gradient_accumulation_plugin=self._accumulation(),
                deepspeed_plugin=plugin,
                kwargs_handlers=[InitProcessGroupKwargs(backend=backend)],
            )

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, compile_model: bool) -> None:
        """Put the model and its optimizer under the engine; afterwards use `model` and `optimizer`."""
        if has_muon(optimizer):
            optimizer = ZeroMuon(optimizer.param_groups, self.device)
        unfilled = is_unfilled(model)
        if unfilled:
            self._fill(model, optimizer)
        _import_muon_of_deepspeed()
        by_block = compile_model and self._stage == 3
        if by_block:
            deepspeed.utils.set_z3_leaf_modules(model, [type(model.blocks[0])])  # type: ignore[index]
        super().prepare(model, optimizer, compile_model=False)
        if by_block:
            _compile_blocks(model)
        elif compile_model:
            self.model.compile(backend="inductor")  # DeepSpeed's own, which keeps its hooks out of the graphs
        self._zero = self.model.optimizer
        c10d._set_pg_timeout(ranks.patience(), self._zero.dp_process_group)  # DeepSpeed's own, with torch's default
        if self.model.gradient_accumulation_steps() != self.settings.accumulation:
            raise ConfigError(
                f"DeepSpeed accumulates {self.model.gradient_accumulation_steps()} micro-batches, "
                f"not {self.settings.accumulation}; leave gradient_accumulation_steps out of the launch"
            )
        self._flats = flat_tensors(self._zero, self._stage)
        self._pieces = list(zero_pieces(model, self._zero, self._stage))
        if isinstance(optimizer, ZeroMuon):
            optimizer.place(self._flats, self._pieces)
        self._tell_loss_scale()
        if not unfilled:  # else what is compared is no number yet, and `loaded` does it
            self._check_deepspeed()

    def _check_deepspeed(self) -> None:
        self.agree(lambda: check_deepspeed(self.bare_model, self._zero, self._stage))

    def _fill(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Give a model on the meta device weights; under ZeRO-3 module by module, so that no rank holds them all."""
        sharded = self.settings.precision == "bf16-sharded"
        unfilled = Unfilled(self.device, torch.bfloat16 if sharded else None)
        if self._stage == 3:
            for module in [*model.blocks, model]:  # type: ignore[misc]
                unfilled.fill(module)
                deepspeed.zero.Init(module=module, config_dict_or_path=self._config)
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
        if self._stage < 3 and self._zero.overflow:
            # Offloaded, DeepSpeed would keep sums that are not finite, and add the next step's gradients to them.
            self._zero.averaged_gradients = dict.fromkeys(self._zero.averaged_gradients)
        norm = torch.as_tensor(self.model.get_global_grad_norm(), dtype=torch.float32, device=self.device)
        if self._loss_scale is not None:
            self._loss_scale.update(norm)
            self._tell_loss_scale()
        return norm

    def _updated_fragments(self) -> list[Fragment]:
        """This rank's share of the weights that are being updated, and of their gradients.

        DeepSpeed lets the optimizer see one flat tensor after another.
        """
        shown = {flat for group in self.optimizer.param_groups for flat in group["params"]}
        return [piece_with_gradient(p, flat) for p in self._pieces if (flat := self._flats[p.flat]) in shown]

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Continue with a saved loss scale."""
        super().load_scaler_state(state)
        self._tell_loss_scale()

    def _tell_loss_scale(self) -> None:
        """DeepSpeed scales the loss and unscales the gradients itself, but it would keep a scale for each group."""
        if self._loss_scale is not None:
            self._zero.override_loss_scale(float(self._loss_scale.scale))

    def owned_fragments(self) -> list[Fragment]:
        """This rank's share of the training state, for a checkpoint; raises CheckpointError if it is mixed up."""
        return self.agree(self._checked_fragments)

    def _checked_fragments(self) -> list[Fragment]:
        fragments = list(zero_fragments(self.bare_model, self._zero, self._stage))
        check_links(fragments, self.bare_model, self._stage)
        return fragments

    def wanted_fragments(self) -> list[Fragment]:
        """The ranges this rank has to fill on a resume; creates the optimizer's state."""
        materialize_zero_state(self._zero, self._stage)
        return self.weight_fragments()  # with that state by now

    def weight_fragments(self) -> list[Fragment]:
        """The ranges of the weights alone, as far as this rank holds them, before the first step."""
        self._wanted = list(zero_fragments(self.bare_model, self._zero, self._stage))
        return self._wanted

    def loaded(self) -> None:
        """Put what was written into the wanted fragments to use. All ranks call this together."""
        put_back(self._wanted, self.bare_model, self._zero, self._stage)
        self._wanted = []
        publish_weights(self._zero, self._stage)
        self._check_deepspeed()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients, in the precision of training also for the bare model."""
        in_bf16 = self.settings.precision == "bf16"
        with super().evaluating(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=in_bf16):
            yield

    def close(self, *, together: bool = True) -> None:
        """Forget Accelerate's process-wide state, and remove what is on NVMe."""
        super().close(together=together)
        if self._scratch is not None:
            self._scratch.close()


def _compile_blocks(model: nn.Module) -> None:
    """Compile what lies between ZeRO-3's hooks, which gather a block's weights as a whole before its forward pass."""
    for module in [*model.blocks, model.out_head]:  # type: ignore[misc]
        module.forward = torch.compile(module.forward, dynamic=False)


def _import_muon_of_deepspeed() -> None:
    """Import DeepSpeed's own Muon, which is not used here, in a tenth of the time.

    DeepSpeed imports it to ask whether an optimizer is one, and it decorates its functions with `torch.compile`,
    which loads all of Inductor: seconds of every start.
    """
    compile_ = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        with suppress(ImportError):  # as DeepSpeed does; versions differ in where it is
            importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compile_


def check_zero(section: dict[str, Any]) -> None:
    """Raise ConfigError for what the launch's file calls otherwise than DeepSpeed, or gives it a wrong value."""
    try:
        DeepSpeedZeroConfig(**section)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, ("zero_optimization", *first["loc"])))
        raise ConfigError(
            f"the launch's DeepSpeed file says {where}={json.dumps(first['input']):.60}: {first['msg']}; "
            "write it as DeepSpeed has it, or leave it out"
        ) from None

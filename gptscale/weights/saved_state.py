"""Folders that Accelerate or DeepSpeed saved a training in, as the state of our model."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptscale.config.schema import ModelConfig
from gptscale.errors import CheckpointError
from gptscale.model.gpt import GPTModel, unfilled_model
from gptscale.runtime.saved_state import MOMENTS, SavedState, read_torch_file
from gptscale.runtime.zero_saved import read_zero_state, zero_folder
from gptscale.weights.files import stored_tensors
from gptscale.weights.source import all_finite


def read_saved_state(path: Path, model_config: ModelConfig) -> SavedState:
    """The state of a GPTModel in a folder of `save_state` (one process, DDP) or of DeepSpeed, by its own names.

    Raises CheckpointError for what is no such folder, or holds another model or optimizer.
    """
    model = unfilled_model(model_config)
    if folder := zero_folder(path):
        return _fitted(folder, read_zero_state(folder), model)
    if (path / "optimizer.bin").is_file():
        return _fitted(path, _read_save_state(path, model), model)
    raise CheckpointError(
        f"{path} is no folder of Accelerate's save_state (model.safetensors or pytorch_model.bin, and optimizer.bin) "
        "and no ZeRO checkpoint of DeepSpeed (*_optim_states.pt); of FSDP, save a full state dict or go through DDP"
    )


def _read_save_state(folder: Path, model: GPTModel) -> SavedState:
    optimizer = read_torch_file(folder / "optimizer.bin")
    state: dict[int, dict[str, Any]] = optimizer.get("state", {})
    groups = [len(group["params"]) for group in optimizer.get("param_groups", ())]
    names = _optimizer_order(folder, state, groups, model)
    moments = {kind: {name: state[i][kind].float() for i, name in enumerate(names)} for kind in MOMENTS}
    return SavedState({"weight": dict(_weights(folder)), **moments}, int(state[0]["step"]))


def _weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors, from safetensors where there are any, in one file or several."""
    safe = [*folder.glob("model.safetensors"), *folder.glob("model-*-of-*.safetensors")]
    for path in safe:
        for key, stored in stored_tensors(path, "pread").items():
            yield key, stored.read().float()
    if not safe:
        parts = sorted(folder.glob("pytorch_model-*-of-*.bin")) or [folder / "pytorch_model.bin"]
        for path in parts:
            for key, tensor in read_torch_file(path).items():
                yield key, tensor.float()


def _optimizer_order(folder: Path, state: dict[int, dict[str, Any]], groups: list[int], model: GPTModel) -> list[str]:
    """Which parameter each number of the optimizer's state is; groups holds how many each group has.

    Optimizers number parameters in the order of their groups: all in one group, or matrices and the rest apart.
    The shapes of the moments say which, since these orders have different shapes wherever they differ. Other groups,
    such as one for each block, may have the shapes of one of these orders, and other parameters.
    """
    named = list(model.named_parameters())
    matrices = [(name, p) for name, p in named if p.dim() >= 2]
    others = [(name, p) for name, p in named if p.dim() < 2]
    found = [[getattr(held.get(kind), "shape", None) for kind in MOMENTS] for _, held in sorted(state.items())]
    for parts in ([named], [matrices, others], [others, matrices]):
        order = [*chain(*parts)]
        if groups == [len(part) for part in parts] and found == [[p.shape] * len(MOMENTS) for _, p in order]:
            return [name for name, _ in order]
    raise CheckpointError(
        f"{folder / 'optimizer.bin'} holds no AdamW state of this model: {len(state)} states in {len(groups)} groups, "
        f"the model has {len(named)} parameters; give the model section it was trained with, and parameters in the "
        "model's own order, in one group or in two (matrices, and the rest)"
    )


def _fitted(folder: Path, found: SavedState, model: GPTModel) -> SavedState:
    """The state by the model's own names; tied weights may come by any of theirs."""
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    return SavedState(
        {kind: _fitted_kind(folder, kind, held, model, names) for kind, held in found.tensors.items()}, found.step
    )


def _fitted_kind(
    folder: Path, kind: str, held: dict[str, Tensor], model: GPTModel, names: dict[int, list[str]]
) -> dict[str, Tensor]:
    # by the model's own names, without what torch.compile and DDP put around them
    bare = {name.replace("_orig_mod.", "").removeprefix("module."): tensor for name, tensor in held.items()}
    fitted = {}
    for name, p in model.named_parameters():
        aliases = [alias for alias in names[id(p)] if alias in bare]
        tensor = bare[aliases[0]] if aliases else None
        if tensor is None or tensor.shape != p.shape:
            shape = "none" if tensor is None else list(tensor.shape)
            raise CheckpointError(
                f"{folder} does not fit model: {kind} of {name} has the shape {shape}, not {list(p.shape)}; "
                "give the model section that it was trained with"
            )
        if not all_finite(tensor):
            raise CheckpointError(f"{folder}: {kind} of {name} has values that are not finite; take an earlier save")
        if not all(torch.equal(tensor, bare[alias]) for alias in aliases[1:]):
            raise CheckpointError(
                f"{folder} does not fit model: {kind} of {' and of '.join(aliases)} differ there, and the model ties "
                "them; set model.tie_embeddings=false"
            )
        fitted[name] = tensor
    if unknown := sorted(bare.keys() - {alias for aliases in names.values() for alias in aliases}):
        raise CheckpointError(
            f"{folder} does not fit model: it holds {unknown[0]} ({len(unknown)} such tensors), of which the model "
            "does not know; give the model section that it was trained with"
        )
    return fitted

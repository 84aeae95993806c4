"""Where DeepSpeed keeps a rank's share of the training state, as live views.

ZeRO-1 and 2 cut the concatenation of a parameter group's tensors into one range per rank; ZeRO-3 cuts every
parameter. DeepSpeed's own accessors fail for all groups but the first, or copy, so these go to its attributes.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gptscale.errors import CheckpointError
from gptscale.runtime.fragments import Fragment, materialize_state, parameter_name


def zero_fragments(model: nn.Module, zero: Any, stage: int) -> Iterator[Fragment]:
    """This rank's share; the optimizer's state is part of it once there is any."""
    return _of_stage_3(model, zero) if stage == 3 else _of_stage_1_and_2(model, zero)


def materialize_zero_state(zero: Any, stage: int) -> None:
    """Make the optimizer create its state for the flat tensors that DeepSpeed shows to it."""
    flats = zero.fp32_partitioned_groups_flat if stage == 3 else [g["params"][0] for g in zero.optimizer.param_groups]
    buffers = [flat.grad for flat in flats]  # under offload DeepSpeed keeps them
    if stage != 3:
        materialize_state(zero.optimizer)
        zero._lazy_init_hp_params_optimizer_state()
    else:
        for number, flat in enumerate(flats):
            group = zero.optimizer.param_groups[zero.sub_group_to_group_id[number]]
            group["params"] = [flat]
            materialize_state(zero.optimizer)
            group["params"] = []
    for flat, buffer in zip(flats, buffers, strict=True):
        flat.grad = buffer


def publish_weights(model: nn.Module, zero: Any, stage: int) -> None:
    """Copy the fp32 weights of all ranks into the model's. All ranks call this together."""
    if stage != 3:
        zero.update_lp_params()
        return
    zero.checkpoint_event_prologue()
    for p in model.parameters():
        flat, offset, numel = _partition(zero, p)
        p.ds_tensor.data.copy_(flat.narrow(0, offset, numel))  # type: ignore[attr-defined]
    zero.checkpoint_event_epilogue()


def check_links(model: nn.Module, zero: Any, stage: int) -> None:
    """Raise CheckpointError unless the fp32 weights, rounded, are the model's weights: else names are mixed up."""
    for fragment, weights in zip(zero_fragments(model, zero, stage), _model_weights(model, stage), strict=True):
        if not torch.equal(fragment.tensors["weight"].to(weights), weights):
            raise CheckpointError(
                f"{fragment.name}: DeepSpeed's fp32 weights are not the model's; nothing was saved. "
                "Use the launch files under launch/accelerate/ as they are, and the pinned deepspeed"
            )


def _of_stage_1_and_2(model: nn.Module, zero: Any) -> Iterator[Fragment]:
    flats = [group["params"][0] for group in zero.optimizer.param_groups]
    for name, p in model.named_parameters():
        link = p._hp_mapping  # type: ignore[attr-defined]
        if link is None:  # nothing of it lies on this rank
            continue
        flat, where = flats[link.param_group_index], link.hp_fragment_address
        yield _fragment(name, tuple(p.shape), link.lp_fragment_address.start, zero, flat, where.start, where.numel)


def _of_stage_3(model: nn.Module, zero: Any) -> Iterator[Fragment]:
    for name, p in model.named_parameters():
        flat, offset, _ = _partition(zero, p)
        start, numel = _range_of_stage_3(p)
        if numel:
            yield _fragment(name, tuple(p.ds_shape), start, zero, flat, offset, numel)  # type: ignore[attr-defined]


def _model_weights(model: nn.Module, stage: int) -> Iterator[Tensor]:
    """The weights the model computes with, in the ranges and the order of `zero_fragments`."""
    for p in model.parameters():
        if stage == 3:
            _, numel = _range_of_stage_3(p)
            if numel:
                yield p.ds_tensor.detach().view(-1)[:numel]  # type: ignore[attr-defined]
        elif p._hp_mapping is not None:  # type: ignore[attr-defined]
            where = p._hp_mapping.lp_fragment_address  # type: ignore[attr-defined]
            yield p.detach().view(-1).narrow(0, where.start, where.numel)


def _range_of_stage_3(p: Any) -> tuple[int, int]:
    """First element and number of elements of a parameter on this rank; the last partitions are padded."""
    part = p.partition_numel()
    start = torch.distributed.get_rank(p.ds_process_group) * part
    return start, max(0, min(p.ds_numel - start, part))


def _partition(zero: Any, p: nn.Parameter) -> tuple[Tensor, int, int]:
    """The flat fp32 tensor that holds a parameter's partition, where, and how long with padding."""
    group, offset, numel = zero.grad_position[zero.get_param_id(p)]
    return zero.fp32_partitioned_groups_flat[group], offset, numel


def _fragment(
    name: str, shape: tuple[int, ...], start: int, zero: Any, flat: Tensor, offset: int, numel: int
) -> Fragment:
    state = zero.optimizer.state.get(flat, {})
    dense = {kind: t for kind, t in state.items() if t.shape == flat.shape}
    scalars = {kind: t for kind, t in state.items() if t.shape != flat.shape}
    tensors = {kind: t.detach().narrow(0, offset, numel) for kind, t in {"weight": flat, **dense}.items()}
    return Fragment(parameter_name(name), shape, start, tensors, scalars)

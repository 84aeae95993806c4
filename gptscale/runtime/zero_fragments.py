"""Where DeepSpeed keeps a rank's share of the training state, as live views.

ZeRO-1 and 2 cut the concatenation of a parameter group's tensors into one range per rank; ZeRO-3 cuts every
parameter. DeepSpeed's own accessors fail for all groups but the first, or copy, so these go to its attributes.
What ZeRO-3 has put out to NVMe comes into memory one flat tensor at a time, and fragments of it are copies.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from gptscale.errors import CheckpointError, ConfigError
from gptscale.runtime.fragments import Fragment, Piece, fragment_of, materialize_state

TESTED_VERSIONS = ("0.19.8",)
"""Releases of DeepSpeed with which every name below was tested; `check_deepspeed` judges others."""

_NAMES = {
    1: ("_lazy_init_hp_params_optimizer_state", "update_lp_params"),
    3: (
        "fp32_partitioned_groups_flat",
        "fp16_groups",
        "grad_position",
        "get_param_id",
        "sub_group_to_group_id",
        "_swappable_optimizer_subgroup",
        "_optimizer_states_and_gradient_swap_in",
        "_optimizer_states_and_gradient_swap_out",
        "_release_swap_buffers",
        "_reassign_or_swap_out_partitioned_parameters",
        "checkpoint_event_prologue",
        "checkpoint_event_epilogue",
    ),
}
"""What this file uses of DeepSpeed's optimizer by private or undocumented names, for stages 1 and 2, and 3."""


def flat_tensors(zero: Any, stage: int) -> list[Tensor]:
    """This rank's fp32 weights as the optimizer knows them: one tensor per group, under ZeRO-3 one or more."""
    if stage == 3:
        return list(zero.fp32_partitioned_groups_flat)
    return [group["params"][0] for group in zero.optimizer.param_groups]


def zero_pieces(model: nn.Module, zero: Any, stage: int) -> Iterator[Piece]:
    """What of the model lies on this rank, in the order of the model's parameters."""
    return _of_stage_3(model, zero) if stage == 3 else _of_stage_1_and_2(model)


def zero_fragments(model: nn.Module, zero: Any, stage: int) -> Iterator[Fragment]:
    """This rank's share; the optimizer's state is part of it once there is any."""
    pieces = list(zero_pieces(model, zero, stage))
    for number, flat in enumerate(flat_tensors(zero, stage)):
        with _in_memory(zero, stage, number) as swapped:
            for piece in pieces:
                if piece.flat == number:
                    fragment = _fragment(piece, flat, zero.optimizer.state.get(flat, {}))
                    copies = {kind: t.clone() for kind, t in fragment.tensors.items()} if swapped else fragment.tensors
                    yield replace(fragment, tensors=copies)


def put_back(copies: list[Fragment], model: nn.Module, zero: Any, stage: int) -> None:
    """Write copies of what is on NVMe back to it; other fragments are what they show."""
    by_name = {fragment.name: fragment for fragment in copies}
    pieces = list(zero_pieces(model, zero, stage))
    for number, flat in enumerate(flat_tensors(zero, stage)):
        with _in_memory(zero, stage, number, keep=True) as swapped:
            for piece in pieces:
                if swapped and piece.flat == number:
                    for kind, t in _fragment(piece, flat, zero.optimizer.state.get(flat, {})).tensors.items():
                        t.copy_(by_name[piece.name].tensors[kind])


def piece_with_gradient(piece: Piece, flat: Tensor) -> Fragment:
    """A piece and its gradient, out of a flat tensor that is being updated."""
    assert flat.grad is not None
    return _fragment(piece, flat, {"gradient": flat.grad})


@contextmanager
def _in_memory(zero: Any, stage: int, number: int, keep: bool = False) -> Iterator[bool]:
    """A flat tensor and its state, read from NVMe if that is where they are, which it tells; written back to keep."""
    swapped = stage == 3 and zero._swappable_optimizer_subgroup(number)
    if swapped:
        zero._optimizer_states_and_gradient_swap_in(number)
    yield swapped
    if swapped and keep:
        zero._optimizer_states_and_gradient_swap_out(number)
    elif swapped:
        zero._release_swap_buffers(number)


def materialize_zero_state(zero: Any, stage: int) -> None:
    """Make the optimizer create its state for the flat tensors that DeepSpeed shows to it."""
    flats = flat_tensors(zero, stage)
    buffers = [flat.grad for flat in flats]  # under offload DeepSpeed keeps them
    if stage != 3:
        materialize_state(zero.optimizer)
        zero._lazy_init_hp_params_optimizer_state()
    else:
        for number, flat in enumerate(flats):
            group = zero.optimizer.param_groups[zero.sub_group_to_group_id[number]]
            with _in_memory(zero, stage, number, keep=True):
                group["params"] = [flat]
                materialize_state(zero.optimizer)
                group["params"] = []
    for flat, buffer in zip(flats, buffers, strict=True):
        flat.grad = buffer


def publish_weights(zero: Any, stage: int) -> None:
    """Copy the fp32 weights of all ranks into the model's. All ranks call this together."""
    if stage != 3:
        zero.update_lp_params()
        return
    zero.checkpoint_event_prologue()
    for number in range(len(zero.fp16_groups)):
        with _in_memory(zero, stage, number):
            zero._reassign_or_swap_out_partitioned_parameters(number)
    zero.checkpoint_event_epilogue()


def check_links(fragments: list[Fragment], model: nn.Module, stage: int) -> None:
    """Raise CheckpointError unless the fp32 weights, rounded, are the model's weights: else names are mixed up."""
    parameters: dict[str, Any] = dict(model.named_parameters())
    for fragment in fragments:
        p = parameters[fragment.name]
        held, start = (p.ds_tensor, 0) if stage == 3 else (p, fragment.start)
        weights = held.detach().view(-1)[start : start + fragment.numel]
        if not torch.equal(fragment.tensors["weight"].to(weights), weights):
            raise CheckpointError(
                f"{fragment.name}: DeepSpeed's fp32 weights are not the model's; nothing was saved. "
                "Use the launch files under launch/accelerate/ as they are, and the pinned deepspeed"
            )


def check_deepspeed(model: nn.Module, zero: Any, stage: int) -> None:
    """Raise ConfigError unless this DeepSpeed keeps a rank's state where this file looks for it."""
    missing = [name for name in _NAMES[3 if stage == 3 else 1] if not hasattr(zero, name)]
    try:
        if not missing:
            check_links(list(zero_fragments(model, zero, stage)), model, stage)
            return
        problem = f"it has no {', '.join(missing)}"
    except (AttributeError, KeyError, TypeError, CheckpointError) as error:
        problem = str(error)
    raise ConfigError(
        f"deepspeed {version('deepspeed')} keeps its state in another way than {', '.join(TESTED_VERSIONS)}, with "
        f"which checkpoints were tested ({problem}); install deepspeed=={TESTED_VERSIONS[-1]}"
    )


def _of_stage_1_and_2(model: nn.Module) -> Iterator[Piece]:
    for name, p in model.named_parameters():
        link = p._hp_mapping  # type: ignore[attr-defined]
        if link is None:  # nothing of it lies on this rank
            continue
        start, where = link.lp_fragment_address.start, link.hp_fragment_address
        yield Piece(name, tuple(p.shape), start, where.numel, link.param_group_index, where.start)


def _of_stage_3(model: nn.Module, zero: Any) -> Iterator[Piece]:
    parameters: dict[str, Any] = dict(model.named_parameters())
    for name, p in parameters.items():
        flat, offset, _ = zero.grad_position[zero.get_param_id(p)]
        part = p.partition_numel()
        start = torch.distributed.get_rank(p.ds_process_group) * part
        if (numel := min(p.ds_numel - start, part)) > 0:  # the last partitions are padded
            yield Piece(name, tuple(p.ds_shape), start, numel, flat, offset)


def _fragment(piece: Piece, flat: Tensor, state: dict[str, Tensor]) -> Fragment:
    def view(t: Tensor) -> Tensor:
        return t.detach().narrow(0, piece.offset, piece.numel)

    return fragment_of(piece.name, piece.shape, piece.start, flat, state, view)

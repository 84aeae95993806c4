"""Checkpoint folders of DeepSpeed's own ZeRO-1, 2 and 3, put together by DeepSpeed's own conversion.

Its conversion knows paddings and alignments, but reads files as pickles and takes the weights only. So the files
are read here, and its merging step is given the weights and then each moment. Tested with deepspeed 0.19.
"""

import re
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from gptscale.errors import CheckpointError
from gptscale.runtime.saved_state import MOMENTS, SavedState, read_torch_file

_RANK = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")

Flats = list[list[Tensor]]
"""For each rank the flat tensor of each parameter group."""


def zero_folder(path: Path) -> Path | None:
    """Where a path's ZeRO files are: there, in what `latest` names, or in the newest global_step*; None if nowhere."""
    if _rank_files(path):
        return path
    latest = path / "latest"
    if latest.is_file():
        named = path / Path(latest.read_text(encoding="utf-8", errors="replace").strip()).name
        return named if _rank_files(named) else None
    steps = sorted(path.glob("global_step*"), key=lambda p: int(re.sub(r"\D", "", p.name) or 0))
    return next((step for step in reversed(steps) if _rank_files(step)), None)


def read_zero_state(folder: Path) -> SavedState:
    """All ranks' shares of a ZeRO checkpoint as whole tensors.

    Raises CheckpointError for a rank that is missing, model parallelism, or another optimizer than AdamW.
    """
    try:
        return _read(folder)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder} is not laid out as by deepspeed 0.19 ({type(error).__name__}: {error}); load it with the "
            "version that wrote it, and save it with 0.19"
        ) from None


def _read(folder: Path) -> SavedState:
    files = _rank_files(folder)
    shares = [read_torch_file(path)["optimizer_state_dict"] for path in files]
    _check_ranks(folder, files, shares[0]["partition_count"])
    stage_3 = "fp32_flat_groups" in shares[0]
    weights: Flats = [share["fp32_flat_groups" if stage_3 else "single_partition_of_fp32_groups"] for share in shares]
    states = [share["optimizer_state_dict" if stage_3 else "base_optimizer_state"]["state"] for share in shares]
    model = read_torch_file(folder / f"{'zero_pp_rank_0_' if stage_3 else ''}mp_rank_00_model_states.pt")
    flats = {"weight": weights} | {kind: _moments(folder, states, weights, kind) for kind in MOMENTS}
    paddings = None if stage_3 else shares[0].get("param_alignment_paddings")
    tensors = {kind: _merged(folder, flat, model["param_shapes"], stage_3, paddings) for kind, flat in flats.items()}
    return SavedState(tensors, int(states[0][0]["step"]))


def _rank_files(folder: Path) -> list[Path]:
    """The ranks' files in the order of the ranks."""
    found = [(match, path) for path in folder.glob("*_optim_states.pt") if (match := _RANK.fullmatch(path.name))]
    return [path for match, path in sorted(found, key=lambda pair: (int(pair[0][2]), int(pair[0][1])))]


def _check_ranks(folder: Path, files: list[Path], count: int | list[int]) -> None:
    ranks = max(count) if isinstance(count, list) else count
    if any("_mp_rank_00_" not in path.name for path in files):
        raise CheckpointError(f"{folder} was written with model parallelism, which gptscale's model does not have")
    if len(files) != ranks:
        raise CheckpointError(f"{folder} holds {len(files)} of {ranks} *_optim_states.pt; copy the whole folder")


def _moments(folder: Path, states: list[dict[int, dict[str, Tensor]]], weights: Flats, kind: str) -> Flats:
    """A moment in the form of the weights, which DeepSpeed saves without the padding at their end."""
    return [
        [_moment(folder, state, group, kind, flat.numel()) for group, flat in enumerate(flats)]
        for state, flats in zip(states, weights, strict=True)
    ]


def _moment(folder: Path, state: dict[int, dict[str, Tensor]], group: int, kind: str, numel: int) -> Tensor:
    found = state.get(group, {}).get(kind)
    if found is None or found.numel() < numel:
        raise CheckpointError(
            f"{folder} holds no {kind} for parameter group {group}; only states of AdamW can be imported, "
            "saved after a first step"
        )
    return found[:numel]


def _merged(folder: Path, flats: Flats, shapes: Any, stage_3: bool, paddings: Any) -> dict[str, Tensor]:
    """Whole tensors by name. DeepSpeed's prints and bars are kept from the user."""
    from deepspeed.utils import zero_to_fp32

    merged: dict[str, Any] = {}
    models = [SimpleNamespace(param_shapes=shapes)]
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            if stage_3:
                zero_to_fp32._zero3_merge_trainable_params(merged, len(flats), flats, models)
            else:
                zero_to_fp32._zero2_merge_trainable_params(merged, len(flats), flats, models, paddings)
    except ValueError as error:
        raise CheckpointError(f"{folder}: DeepSpeed cannot put its parameters together: {error}") from None
    return {name: tensor.contiguous().float() for name, tensor in merged.items()}

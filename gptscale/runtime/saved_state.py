"""Training state that other programs saved, and the files of `torch.save` in which it lies.

Such files are pickles. They are read with torch's own reader that knows tensors and plain values only; the few
classes of DeepSpeed in them become empty objects, so nothing that a file names is ever imported or called.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptscale.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of every element."""


@dataclass(frozen=True)
class SavedState:
    """Weights and AdamW's moments by parameter name, in float32 and in the parameters' shapes."""

    tensors: dict[str, dict[str, Tensor]]
    """By kind (weight, exp_avg, exp_avg_sq), then by name."""
    step: int
    """Updates that AdamW has done."""


class _Opaque:
    """Stands for an object that is not needed."""

    def __init__(self, *args: Any) -> None: ...


_OPAQUE = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "builtins.getattr",  # how Python 3.11.0 to 3.11.3 write the member of an enum; nothing is looked up
)


def read_torch_file(path: Path) -> dict[str, Any]:
    """The contents of a file of `torch.save`, tensors mapped into memory; raises CheckpointError for code in it."""
    try:
        with torch.serialization.safe_globals([(_Opaque, name) for name in _OPAQUE]):
            found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; copy the whole folder") from None
    except Exception as error:  # UnpicklingError, RuntimeError for a torn archive, and what a broken pickle raises
        raise CheckpointError(_refusal(path, error)) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not the dictionary of a saved state")
    return found


def unpickling_problem(error: Exception) -> str:
    """What torch's reader of tensors and plain values says, in one line and without its own advice."""
    said = str(error).split("WeightsUnpickler error: ")[-1].strip().splitlines()
    return next(iter(said), type(error).__name__)


def _refusal(path: Path, error: Exception) -> str:
    return (
        f"{path} cannot be read as tensors and plain values, and is not read as anything else, since a pickle can run "
        f"code ({unpickling_problem(error)}); save it again without that, or the weights alone as safetensors"
    )

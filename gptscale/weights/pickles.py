"""Weights in torch's pickles, of which tensors and plain values are built and nothing runs."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptscale.errors import WeightsError
from gptscale.runtime.saved_state import unpickling_problem
from gptscale.weights.source import Stored, floats

CODE = ("unsupported GLOBAL", "Unsupported global", "unrecognized function", "Can only create new object")
"""How torch says that a pickle asks for more than tensors and plain values."""


def read_pickle(path: Path) -> dict[str, Any]:
    """What a .pth, .pt or .bin file holds, with its tensors mapped from the file where its form allows it.

    Raises WeightsError for anything but tensors and plain values; code in the file does not run.
    """
    try:
        content = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception as error:  # pickle's own errors among them, whose module no file here imports
        if any(words in str(error) for words in CODE):
            raise WeightsError(
                f"{path} holds more than tensors and plain values, which could run code, so it was not loaded; "
                "save its state_dict alone, best as safetensors"
            ) from None
        raise WeightsError(
            f"{path} is cut short or no file of torch.save ({unpickling_problem(error)}); copy it again"
        ) from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state_dict; save model.state_dict()")
    return content


def stored_tensors(path: Path, state: dict[str, Any]) -> dict[str, Stored]:
    """The tensors of a state_dict. Raises WeightsError for anything else among them."""
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise WeightsError(f"{path}: {name!r} is no name of a tensor; save model.state_dict()")
        if not isinstance(tensor, Tensor):
            raise WeightsError(f"{path}: {name} is a {type(tensor).__name__}, not a tensor; save model.state_dict()")
    return {name: _stored(f"{path}: {name}", tensor) for name, tensor in state.items()}


def _stored(origin: str, tensor: Tensor) -> Stored:
    return Stored(tuple(tensor.shape), lambda: floats(origin, tensor))

"""Weights that lie somewhere else: what a source says of its model, and its tensors, read one at a time."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gptscale.errors import WeightsError

FIELDS = {"n_embd": "emb_dim", "n_head": "n_heads", "n_layer": "n_layers"}
"""What OpenAI, transformers and nanoGPT call alike, by our names."""

BUFFERS = re.compile(r".*\.(att\.mask|attn\.bias|attn\.masked_bias)")
"""Causal masks, which older checkpoints hold beside their parameters."""

Layout = Literal["gptscale", "transformers", "nanogpt", "tensorflow", "book"]


@dataclass(frozen=True)
class Stored:
    """A tensor on disk, which is read when it is asked for."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


Tensors = Mapping[str, Stored]


@dataclass(frozen=True)
class Source:
    """A model's weights in one of the layouts of the name table."""

    origin: str
    """What messages call it: a path, or a Hub name with its revision."""
    layout: Layout
    fields: dict[str, Any]
    """The settings of the model section that the source says."""
    tensors: Tensors
    """By the names of the layout, without buffers."""
    has_biases: bool = True
    """False where no layer at all has a bias."""
    folder: Path | None = None
    """Where transformers finds the same model, if it can read it."""
    assumed: tuple[str, ...] = ()
    """Fields that it does not say, and that a model section may have otherwise."""
    notes: tuple[str, ...] = ()
    """What a reader should be told."""
    tokenizer: str | None = None
    """Its name in `load_tokenizer`, where an export of ours says it."""


def floats(origin: str, tensor: Tensor) -> Tensor:
    """A tensor of plain floating-point numbers, as it is; raises WeightsError for any other kind."""
    if tensor.layout != torch.strided or tensor.is_meta or not tensor.is_floating_point():
        kind = "meta" if tensor.is_meta else f"{tensor.layout} of {tensor.dtype}".replace("torch.", "")
        raise WeightsError(f"{origin} holds no plain floating-point numbers ({kind}); save it as a float32 tensor")
    return tensor


def all_finite(values: Tensor) -> bool:
    """Whether there is neither a NaN nor an infinity; takes no memory, where isfinite takes more than the values."""
    return bool(torch.stack(values.aminmax()).isfinite().all())


def counts(origin: str, said: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, int]:
    """A source's own settings by our names. Raises WeightsError unless they are whole numbers above 0."""
    for name in names:
        if type(said[name]) is not int or said[name] < 1:
            raise WeightsError(f"{origin} says {name}={said[name]!r}, which is no whole number above 0; copy it again")
    return {ours: said[theirs] for theirs, ours in names.items()}


def said_tokenizer(said: Any) -> str | None:
    """A tokenizer's name as a source says it, or None."""
    return said if isinstance(said, str) and said else None


def own_parameters(tensors: Tensors, *prefixes: str) -> dict[str, Stored]:
    """The tensors without masks, by their bare names; wrappers such as torch.compile put their own before them."""
    for prefix in prefixes:
        tensors = {name.removeprefix(prefix): stored for name, stored in tensors.items()}
    return {name: stored for name, stored in tensors.items() if not BUFFERS.fullmatch(name)}

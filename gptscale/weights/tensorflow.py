"""OpenAI's own checkpoints of GPT-2: hparams.json and model.ckpt.* in one folder. The home of TensorFlow, an extra."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from gptscale.errors import WeightsError, first_line
from gptscale.weights.source import FIELDS, Source, Stored, counts

HPARAMS = "hparams.json"
OPENAI_FIELDS = {"n_vocab": "vocab_size", "n_ctx": "context_length", **FIELDS}
"""hparams.json by our names."""


def open_tensorflow(folder: Path) -> Source:
    """The weights in a folder of OpenAI's. Raises WeightsError where TensorFlow is not installed."""
    reader = _reader(folder)
    fields = {**_hparams(folder), "qkv_bias": True, "norm_bias": True, "tie_embeddings": True, "gelu": "tanh"}
    shapes = reader.get_variable_to_shape_map()
    tensors = {name.removeprefix("model/"): _stored(reader, name, shape) for name, shape in shapes.items()}
    return Source(str(folder), "tensorflow", fields, tensors)


def _reader(folder: Path) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow
    except ImportError:
        raise WeightsError(
            f"{folder} is a TensorFlow checkpoint, and TensorFlow is not installed; "
            "in the clone of gptscale, pip install -c constraints.txt -e '.[tensorflow]' (it is large)"
        ) from None
    try:
        return tensorflow.train.load_checkpoint(str(folder))
    except Exception as error:  # TensorFlow's kinds are many
        raise WeightsError(
            f"{folder} holds no whole TensorFlow checkpoint ({first_line(error)}); copy it again"
        ) from None


def _hparams(folder: Path) -> dict[str, Any]:
    try:
        said = json.loads((folder / HPARAMS).read_text(encoding="utf-8"))
        return counts(str(folder / HPARAMS), said, OPENAI_FIELDS)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(f"{folder / HPARAMS} is not GPT-2's ({error!r}); copy it again") from None


def _stored(reader: Any, name: str, shape: list[int]) -> Stored:
    """A variable; the matrices have an axis of length 1 before their own two."""
    squeezed = tuple(shape[1:] if len(shape) == 3 else shape)
    return Stored(squeezed, lambda: torch.from_numpy(reader.get_tensor(name).reshape(squeezed)))

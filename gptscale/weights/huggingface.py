"""A folder in the form of transformers' GPT-2: its config.json, and its weights as safetensors or pickles."""

import json
from pathlib import Path
from typing import Any

import torch

from gptscale.errors import WeightsError
from gptscale.weights import files, pickles
from gptscale.weights.source import FIELDS, Source, Tensors, counts, own_parameters, said_tokenizer

CONFIG = "config.json"
PICKLED_INDEX = "pytorch_model.bin.index.json"
OUR_TOKENIZER = "gptscale_tokenizer"
"""Where config.json of an export says which tokenizer it is to be imported with."""
GPT2_FIELDS = {"vocab_size": "vocab_size", "n_positions": "context_length", **FIELDS}
"""config.json by our names."""
GELU = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "erf"}
FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "layer_norm_epsilon": 1e-5,
}
"""What GPTModel computes, and what transformers takes where config.json does not say it."""


def open_folder(folder: Path, origin: str | None = None) -> Source:
    """The weights of a folder with config.json. Raises WeightsError if they are not a GPT-2's."""
    origin = origin or str(folder)
    config = _config(folder)
    fields = _fields(origin, config)
    tensors: Tensors = own_parameters(_tensors(folder), "transformer.")
    notes: tuple[str, ...] = ()
    if fields["tie_embeddings"]:
        fields["tie_embeddings"], tensors = _tied(tensors)
        if not fields["tie_embeddings"]:
            notes = (f"{origin} holds a head of its own, so model.tie_embeddings=false, which {CONFIG} does not say",)
    tokenizer = said_tokenizer(config.get(OUR_TOKENIZER))
    return Source(origin, "transformers", fields, tensors, folder=folder, notes=notes, tokenizer=tokenizer)


def _tied(tensors: Tensors) -> tuple[bool, Tensors]:
    """Whether the head is the embedding, and then the tensors without it. The tensors decide, as in transformers 5."""
    head, embedding = (tensors.get(name) for name in ("lm_head.weight", "wte.weight"))
    if head is None:
        return True, tensors
    if embedding is not None and not torch.equal(head.read(), embedding.read()):
        return False, tensors
    others = {name: stored for name, stored in tensors.items() if name != "lm_head.weight"}
    return True, {**others, "wte.weight": embedding or head}  # safetensors' save_model writes one of the two


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{folder / CONFIG} cannot be read ({error}); copy it again") from None
    if not isinstance(config, dict):
        raise WeightsError(f"{folder / CONFIG} cannot be read (it is no object); copy it again")
    return config


def _fields(origin: str, config: dict[str, Any]) -> dict[str, Any]:
    """The model section that computes what the config does."""
    if (found := config.get("model_type")) != "gpt2":
        raise WeightsError(f"{origin} is a {found}, not a gpt2; GPTModel computes GPT-2's architecture only")
    if missing := GPT2_FIELDS.keys() - config.keys():
        raise WeightsError(f"{origin}: {CONFIG} lacks {sorted(missing)[0]}; copy it again")
    sizes = counts(f"{origin}: {CONFIG}", config, GPT2_FIELDS)
    for name, value in {**FIXED, "n_inner": 4 * config["n_embd"]}.items():
        if (asked := config.get(name)) not in (None, value):
            raise WeightsError(f"{origin} has {name}={asked}, but GPTModel computes with {value} only")
    activation = str(config.get("activation_function", "gelu_new"))
    if activation not in GELU:
        raise WeightsError(f"{origin} has activation_function={activation}; GPTModel knows {', '.join(GELU)}")
    return {
        **sizes,
        "qkv_bias": True,
        "norm_bias": True,
        "tie_embeddings": config.get("tie_word_embeddings", True),
        "gelu": GELU[activation],
    }


def _tensors(folder: Path) -> Tensors:
    """From one safetensors file, or several with an index, or a pickle, in this order."""
    if (folder / "model.safetensors").exists():
        return files.stored_tensors(folder / "model.safetensors")
    if (folder / files.INDEX).exists():
        return files.indexed_tensors(folder / files.INDEX)
    if (folder / "pytorch_model.bin").exists():
        return _pickled(folder / "pytorch_model.bin")
    if (folder / PICKLED_INDEX).exists():
        return files.indexed_tensors(folder / PICKLED_INDEX, _pickled)
    raise WeightsError(f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin, nor an index")


def _pickled(path: Path) -> Tensors:
    return pickles.stored_tensors(path, pickles.read_pickle(path))

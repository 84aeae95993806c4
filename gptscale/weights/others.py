"""Checkpoints of one file: those of "Build a Large Language Model (From Scratch)", and nanoGPT's."""

from pathlib import Path
from typing import Any

import torch

from gptscale.config.presets import GPT2_SIZES
from gptscale.errors import WeightsError
from gptscale.weights.pickles import read_pickle, stored_tensors
from gptscale.weights.source import FIELDS, Source, Tensors, counts, own_parameters, said_tokenizer

NANOGPT_FIELDS = {"vocab_size": "vocab_size", "block_size": "context_length", **FIELDS}
"""nanoGPT's model_args by our names."""


def open_file(path: Path) -> Source:
    """The weights of a .pth, .pt or .bin file: nanoGPT's say so, the book's are known by their names."""
    content = read_pickle(path)
    if isinstance(content.get("model_args"), dict) and isinstance(content.get("model"), dict):
        config = content.get("config")
        return _nanogpt(path, content["model"], content["model_args"], config if isinstance(config, dict) else {})
    state = content.get("model_state_dict", content)
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: model_state_dict is a {type(state).__name__}; save model.state_dict()")
    tensors = own_parameters(stored_tensors(path, state), "module.", "_orig_mod.")
    if "tok_emb.weight" in tensors and "trf_blocks.0.norm1.scale" in tensors:
        return _book(path, tensors)
    raise WeightsError(
        f"{path} is neither a checkpoint of the book (no trf_blocks.0.norm1.scale) nor of nanoGPT (no model_args); "
        "give the folder of a transformers checkpoint, with its config.json"
    )


def _nanogpt(path: Path, state: dict[str, Any], said: dict[str, Any], config: dict[str, Any]) -> Source:
    """nanoGPT always ties its head, and takes exact GELU; an export of ours says which GELU it was trained with."""
    tensors = own_parameters(stored_tensors(path, state), "module.", "_orig_mod.", "transformer.")
    tensors.pop("lm_head.weight", None)
    if missing := NANOGPT_FIELDS.keys() - said.keys():
        raise WeightsError(f"{path}: its model_args lack {sorted(missing)[0]}; is it a ckpt.pt of nanoGPT's train.py?")
    fields: dict[str, Any] = counts(f"{path}: model_args", said, NANOGPT_FIELDS)
    bias = bool(said.get("bias", True))
    fields |= {"qkv_bias": bias, "norm_bias": bias, "tie_embeddings": True, "gelu": config.get("gelu", "erf")}
    tokenizer = said_tokenizer(config.get("tokenizer"))
    return Source(str(path), "nanogpt", fields, tensors, has_biases=bias, tokenizer=tokenizer)


def _book(path: Path, tensors: Tensors) -> Source:
    """The book's files say nothing but shapes, from which all follows but the number of heads."""
    for name in ("tok_emb.weight", "pos_emb.weight", "out_head.weight"):
        if name not in tensors or len(tensors[name].shape) != 2:
            raise WeightsError(f"{path} lacks the tensor {name}; is it a whole checkpoint of GPT-2's family?")
    vocab_size, emb_dim = tensors["tok_emb.weight"].shape
    fields = {
        "vocab_size": vocab_size,
        "context_length": tensors["pos_emb.weight"].shape[0],
        "emb_dim": emb_dim,
        "n_layers": sum(name.endswith("norm1.scale") for name in tensors),
        "qkv_bias": "trf_blocks.0.att.W_query.bias" in tensors,
        "norm_bias": True,
        "tie_embeddings": False,
        "gelu": "tanh",
    }
    if torch.equal(tensors["out_head.weight"].read(), tensors["tok_emb.weight"].read()):
        fields["tie_embeddings"] = True  # GPT-2's weights, put into both
        tensors = {name: stored for name, stored in tensors.items() if name != "out_head.weight"}
    heads = {size["emb_dim"]: size["n_heads"] for size in GPT2_SIZES.values()}.get(emb_dim)
    if heads is None:
        return Source(str(path), "book", fields, tensors)
    return Source(str(path), "book", {**fields, "n_heads": heads}, tensors, assumed=("n_heads",))

"""Weights out: a folder that transformers loads without code of ours, or nanoGPT's file."""

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptscale.config.schema import ModelConfig
from gptscale.data.tokenizer import Tokenizer
from gptscale.errors import WeightsError, first_line
from gptscale.weights.files import INDEX, pack, write_tensors
from gptscale.weights.gpt2 import parameter_shapes, to_layout
from gptscale.weights.huggingface import FIXED, GELU, GPT2_FIELDS, OUR_TOKENIZER
from gptscale.weights.others import NANOGPT_FIELDS
from gptscale.weights.source import Layout, Source, all_finite

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def write_transformers(
    folder: Path, source: Source, cfg: ModelConfig, tokenizer: Tokenizer, dtype: str, part_bytes: int
) -> None:
    """Write config.json, generation_config.json and the weights in parts; never holds more than one part."""
    end_of_text = tokenizer.end_of_text
    config = transformers_config(cfg, end_of_text, dtype)
    _write_json(folder / "config.json", {**config, OUR_TOKENIZER: tokenizer.name})
    _write_json(folder / "generation_config.json", {"bos_token_id": end_of_text, "eos_token_id": end_of_text})
    element = DTYPES[dtype].itemsize
    sizes = {name: element * prod(shape) for name, shape in parameter_shapes(_with_biases(cfg)).items()}
    groups = pack(sizes, part_bytes)
    files: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        whole = len(groups) == 1
        file = "model.safetensors" if whole else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        files |= dict.fromkeys(_write_part(folder / file, source, cfg, dtype, group), file)
    if len(groups) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files})


def write_nanogpt(
    folder: Path, source: Source, cfg: ModelConfig, tokenizer: Tokenizer, dtype: str, step: int, val_loss: float
) -> None:
    """Write ckpt.pt as nanoGPT's train.py does, without its optimizer's state.

    nanoGPT computes GELU exactly, also for GPT-2's weights, so a model with the tanh form has slightly other logits
    there. Raises WeightsError for a head of its own, which nanoGPT does not have, and for a disk without room.
    """
    if not cfg.tie_embeddings:
        raise WeightsError(
            f"{source.origin} has model.tie_embeddings=false, but nanoGPT always ties its head to the embedding; "
            "use --format transformers"
        )
    model_args = {theirs: getattr(cfg, ours) for theirs, ours in NANOGPT_FIELDS.items()}
    state = dict(_exported(source, cfg, "nanogpt", dtype, list(parameter_shapes(_with_biases(cfg)))))
    state["lm_head.weight"] = state["transformer.wte.weight"]
    checkpoint = {
        "model": state,
        "model_args": {**model_args, "dropout": cfg.drop_rate, "bias": True},
        "iter_num": step,
        "best_val_loss": val_loss,
        "config": {"gelu": cfg.gelu, "tokenizer": tokenizer.name},  # for our own import; nanoGPT's settings lie here
    }
    try:
        torch.save(checkpoint, folder / "ckpt.pt")
    except RuntimeError as error:  # what torch makes of a full disk
        raise WeightsError(
            f"ckpt.pt could not be written whole ({first_line(error)}); make room on the disk of --to"
        ) from None


def transformers_config(cfg: ModelConfig, end_of_text: int, dtype: str) -> dict[str, Any]:
    """The config.json of a GPT2LMHeadModel that computes what our model does."""
    gelu = next(theirs for theirs, ours in GELU.items() if ours == cfg.gelu)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{theirs: getattr(cfg, ours) for theirs, ours in GPT2_FIELDS.items()},
        "n_ctx": cfg.context_length,
        "activation_function": gelu,
        **FIXED,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), cfg.drop_rate),
        "tie_word_embeddings": cfg.tie_embeddings,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": dtype,
    }


def _write_part(path: Path, source: Source, cfg: ModelConfig, dtype: str, names: list[str]) -> list[str]:
    """Write some parameters into one file; gives their names there, and lets go of them."""
    tensors = dict(_exported(source, cfg, "transformers", dtype, names))
    write_tensors(path, tensors, {"format": "pt"})
    return list(tensors)


def _with_biases(cfg: ModelConfig) -> ModelConfig:
    """The same function for readers that always have biases: ours that lack them are zero there."""
    return cfg.model_copy(update={"qkv_bias": True, "norm_bias": True})


def _exported(
    source: Source, cfg: ModelConfig, layout: Layout, dtype: str, names: list[str]
) -> Iterator[tuple[str, Tensor]]:
    """Parameters by the names of a layout, read one after the other."""
    shapes = parameter_shapes(_with_biases(cfg))
    for ours in names:
        values = source.tensors[ours].read() if ours in source.tensors else torch.zeros(shapes[ours])
        if not all_finite(values):
            raise WeightsError(f"{source.origin}: {ours} has values that are not finite; take an earlier checkpoint")
        for name, tensor in to_layout(ours, values, layout, cfg.n_layers, cfg.vocab_size).items():
            cast = tensor.to(DTYPES[dtype])
            if not all_finite(cast):
                raise WeightsError(f"{source.origin}: {ours} has values that {dtype} cannot hold; use --dtype float32")
            yield name if name == "lm_head.weight" else f"transformer.{name}", cast


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

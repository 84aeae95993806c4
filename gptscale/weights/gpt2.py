"""The name table: where each parameter of GPTModel lies in the layouts of GPT-2's family, in both directions.

The layouts: transformers' (also on the Hub), nanoGPT's (the same names, matrices as here), OpenAI's TensorFlow
checkpoints, and those of the book "Build a Large Language Model (From Scratch)".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gptscale.config.schema import ModelConfig
from gptscale.errors import WeightsError
from gptscale.model.gpt import unfilled_model
from gptscale.weights.source import Layout, Source, all_finite


class Row(NamedTuple):
    """One layer by its names; {} is the block. Three names are the rows of its tensors in three pieces."""

    kind: Literal["table", "norm", "linear"]
    """A table has no bias. Transformers and TensorFlow keep the matrix of a linear layer as (inputs, outputs)."""
    ours: str
    transformers: str
    tensorflow: str
    book: str | tuple[str, str, str]


_BOOK_QKV = ("trf_blocks.{}.att.W_query", "trf_blocks.{}.att.W_key", "trf_blocks.{}.att.W_value")

ROWS = (
    Row("table", "tok_emb", "wte", "wte", "tok_emb"),
    Row("table", "pos_emb", "wpe", "wpe", "pos_emb"),
    Row("norm", "blocks.{}.norm1", "h.{}.ln_1", "h{}/ln_1", "trf_blocks.{}.norm1"),
    Row("linear", "blocks.{}.att.qkv", "h.{}.attn.c_attn", "h{}/attn/c_attn", _BOOK_QKV),
    Row("linear", "blocks.{}.att.out_proj", "h.{}.attn.c_proj", "h{}/attn/c_proj", "trf_blocks.{}.att.out_proj"),
    Row("norm", "blocks.{}.norm2", "h.{}.ln_2", "h{}/ln_2", "trf_blocks.{}.norm2"),
    Row("linear", "blocks.{}.ff.fc", "h.{}.mlp.c_fc", "h{}/mlp/c_fc", "trf_blocks.{}.ff.layers.0"),
    Row("linear", "blocks.{}.ff.out_proj", "h.{}.mlp.c_proj", "h{}/mlp/c_proj", "trf_blocks.{}.ff.layers.2"),
    Row("norm", "final_norm", "ln_f", "ln_f", "final_norm"),
    Row("table", "out_head", "lm_head", "lm_head", "out_head"),
)
"""TensorFlow's checkpoints have no head of their own; its name there is ours."""

ENDINGS = {
    "tensorflow": {"table": ("", ""), "norm": ("/g", "/b"), "linear": ("/w", "/b")},
    "book": {"norm": (".scale", ".shift")},
}
"""What stands behind a layer's name for its weight and its bias, where that is not .weight and .bias."""

COLUMNS = {"gptscale": "ours", "nanogpt": "transformers"}
"""Layouts that have their names from another column; the others are called as theirs."""

TRANSPOSED = ("transformers", "tensorflow")
TABLES = ("tok_emb.weight", "out_head.weight")
"""The parameters with a row for each token id; ours are padded, nobody else's."""


@dataclass(frozen=True)
class Place:
    """Where one parameter lies in a layout."""

    theirs: tuple[str, ...]
    """Tensors whose rows, one after the other, are ours."""
    transposed: bool


def name_table(n_layers: int, layout: Layout) -> dict[str, Place]:
    """Every parameter that a model with so many blocks can have, with its place, by our names."""
    places, column = {}, COLUMNS.get(layout, layout)
    for row in ROWS:
        names = getattr(row, column)
        names = (names,) if isinstance(names, str) else names
        weight, bias = ENDINGS.get(column, {}).get(row.kind, (".weight", ".bias"))
        transposed = row.kind == "linear" and layout in TRANSPOSED
        for block in range(n_layers) if "{}" in row.ours else (0,):
            ours, theirs = row.ours.format(block), [name.format(block) for name in names]
            places[f"{ours}.weight"] = Place(tuple(name + weight for name in theirs), transposed)
            if row.kind != "table":
                places[f"{ours}.bias"] = Place(tuple(name + bias for name in theirs), transposed=False)
    return places


def parameter_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The parameters of a model, without vocabulary padding; a tied head is the embedding."""
    shapes = {name: tuple(p.shape) for name, p in unfilled_model(cfg).named_parameters()}
    return {name: (cfg.vocab_size, *shape[1:]) if name in TABLES else shape for name, shape in shapes.items()}


def check_source(source: Source, cfg: ModelConfig) -> None:
    """Raise WeightsError unless the source's model computes what the config's does, tensor for tensor.

    The config may see fewer positions, have biases that the source lacks (they become zero, the same function),
    and a head of its own (it becomes the embedding).
    """
    _check_size(source)
    _check_fields(source, cfg)
    expected = _expected_tensors(source, cfg.model_copy(update=source.fields))
    for name, shape in expected.items():
        if name not in source.tensors:
            raise WeightsError(f"{source.origin} lacks the tensor {name}; is it a whole checkpoint of GPT-2's family?")
        if (found := source.tensors[name].shape) != shape:
            raise WeightsError(f"{source.origin}: {name} has shape {list(found)}, where {list(shape)} is expected")
    if surplus := sorted(set(source.tensors) - set(expected)):
        raise WeightsError(
            f"{source.origin} has {len(surplus)} tensors that GPTModel has no place for: {', '.join(surplus[:3])}"
        )


def notes_on(source: Source, cfg: ModelConfig) -> list[str]:
    """What the reader of a source's weights should be told, now that a model of this config takes them."""
    notes = list(source.notes)
    for name in source.assumed:
        guess, taken = source.fields[name], getattr(cfg, name)
        known = "is" if taken == guess else f"is the model section's, and {name}={guess} would be"
        notes.append(f"{source.origin} does not say its {name}; {name}={taken} {known} GPT-2's for its size")
    if (known_positions := source.fields["context_length"]) > cfg.context_length:
        notes.append(f"positions: the first {cfg.context_length} of {known_positions}")
    return notes


def read_parameters(source: Source, cfg: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Our parameters in float32 as the source has them, one after the other; check_source comes first.

    Rows of padding are zero. Raises WeightsError for a value that is not finite.
    """
    table = name_table(cfg.n_layers, source.layout)
    for name, p in unfilled_model(cfg).named_parameters():
        place = table[name]
        if name == "out_head.weight" and place.theirs[0] not in source.tensors:
            place = table["tok_emb.weight"]
        values = torch.zeros(p.shape)
        if place.theirs[0] in source.tensors:
            found = _joined(source, place)[: len(values)]  # fewer positions than the source's
            values[: len(found)] = found
        yield name, values


def to_layout(name: str, values: Tensor, layout: Layout, n_layers: int, vocab_size: int) -> dict[str, Tensor]:
    """One of our parameters as the tensors of a layout, without padding."""
    place = name_table(n_layers, layout)[name]
    values = values[:vocab_size] if name in TABLES else values
    pieces = values.chunk(len(place.theirs))
    return {t: (v.T if place.transposed else v).contiguous() for t, v in zip(place.theirs, pieces, strict=True)}


def _joined(source: Source, place: Place) -> Tensor:
    pieces = []
    for name in place.theirs:
        piece = source.tensors[name].read().float()
        if not all_finite(piece):
            raise WeightsError(f"{source.origin}: {name} holds values that are not finite; take another copy of it")
        pieces.append(piece.T if place.transposed else piece)
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def _expected_tensors(source: Source, said: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a layout for a model, with their shapes."""
    table = name_table(said.n_layers, source.layout)
    expected: dict[str, tuple[int, ...]] = {}
    for ours, shape in parameter_shapes(said).items():
        if ours.endswith("bias") and not source.has_biases:
            continue
        place = table[ours]
        rows = (shape[0] // len(place.theirs), *shape[1:])
        expected |= dict.fromkeys(place.theirs, rows[::-1] if place.transposed else rows)
    return expected


def _check_size(source: Source) -> None:
    """See that the source's settings are not far off, before a model of that size is laid out."""
    said = source.fields
    (name,) = name_table(0, source.layout)["tok_emb.weight"].theirs
    shape = (said["vocab_size"], said["emb_dim"])
    if name in source.tensors and source.tensors[name].shape != shape:
        raise WeightsError(
            f"{source.origin}: {name} has shape {list(source.tensors[name].shape)}, where {list(shape)} is expected"
        )
    if said["n_layers"] > len(source.tensors):
        raise WeightsError(
            f"{source.origin} says n_layers={said['n_layers']}, but holds {len(source.tensors)} tensors; "
            "is it a whole checkpoint of GPT-2's family?"
        )


def _check_fields(source: Source, cfg: ModelConfig) -> None:
    """Compare what the source says of its model with the config's model section."""
    said, now = source.fields, cfg.model_dump()
    if cfg.context_length > said["context_length"]:
        raise WeightsError(
            f"{source.origin} knows {said['context_length']} positions, fewer than model.context_length="
            f"{cfg.context_length}; set model.context_length={said['context_length']} or less"
        )
    same = {"vocab_size", "emb_dim", "n_heads", "n_layers", "gelu"} - set(source.assumed)
    same |= {name for name in ("qkv_bias", "norm_bias") if said.get(name)}  # lacking ones become zero
    same |= {"tie_embeddings"} if said["tie_embeddings"] is False else set()  # a tied one is copied into a head
    wrong = {name: said[name] for name in sorted(same & said.keys()) if said[name] != now[name]}
    if wrong:
        there = ", ".join(f"{name}={_plain(value)}" for name, value in wrong.items())
        here = ", ".join(f"{name}={_plain(now[name])}" for name in wrong)
        settings = " ".join(f"model.{name}={_plain(value)}" for name, value in wrong.items())
        raise WeightsError(f"{source.origin} has {there}, but the model section says {here}; set {settings}")


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

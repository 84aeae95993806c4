from typing import get_args

import pytest
import torch

from gptscale.config.schema import ModelConfig
from gptscale.model.gpt import GPTModel
from gptscale.weights.gpt2 import name_table, to_layout
from gptscale.weights.source import Layout

LAYOUTS = get_args(Layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_table_is_a_bijection(layout: Layout) -> None:
    table = name_table(3, layout)
    theirs = [name for place in table.values() for name in place.theirs]
    assert len(set(theirs)) == len(theirs)


def test_the_table_has_every_parameter_of_a_model_and_no_other() -> None:
    model = GPTModel(ModelConfig(vocab_size=9, emb_dim=4, n_heads=2, n_layers=3, tie_embeddings=False), seed=None)
    for layout in LAYOUTS:
        assert name_table(3, layout).keys() == dict(model.named_parameters()).keys()


def test_names_and_shapes_are_those_of_the_layout() -> None:
    qkv = torch.arange(24.0).view(12, 2)  # two inputs, three times four outputs
    ((name, stored),) = to_layout("blocks.1.att.qkv.weight", qkv, "transformers", 2, 9).items()
    assert name == "h.1.attn.c_attn.weight"
    assert torch.equal(stored, qkv.T)
    pieces = to_layout("blocks.1.att.qkv.weight", qkv, "book", 2, 9)
    assert list(pieces) == [f"trf_blocks.1.att.W_{which}.weight" for which in ("query", "key", "value")]
    assert pieces["trf_blocks.1.att.W_key.weight"].tolist() == qkv[4:8].tolist()
    assert list(to_layout("blocks.0.ff.fc.weight", qkv, "tensorflow", 2, 9)) == ["h0/mlp/c_fc/w"]
    padded = torch.arange(128.0).view(64, 2)
    assert to_layout("tok_emb.weight", padded, "nanogpt", 2, 9)["wte.weight"].shape == (9, 2)

"""Random models of transformers, as folders, and what a model computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

TINY = {"vocab_size": 257, "n_positions": 24, "n_embd": 48, "n_head": 4, "n_layer": 3}
BYTES = ["data.tokenizer=bytes"]


def random_gpt2(**changes: Any) -> GPT2LMHeadModel:
    """A GPT-2 with random weights and biases everywhere, norms included."""
    model = GPT2LMHeadModel(GPT2Config(**{**TINY, "bos_token_id": 256, "eos_token_id": 256, **changes})).eval()
    generator = torch.Generator().manual_seed(5)
    for p in model.parameters():
        p.data.normal_(0.0, 0.3, generator=generator)
    return model


@torch.no_grad()
def logits_of(model: Any, length: int = 24) -> Tensor:
    """What a model of theirs or of ours gives for two fixed rows."""
    tokens = torch.randint(257, (2, length), generator=torch.Generator().manual_seed(1))
    found = model(tokens)
    return found if isinstance(found, Tensor) else found.logits


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[GPT2LMHeadModel, Path]]:
    """Save a random GPT-2 of theirs; gives it and its folder."""

    def save(**changes: Any) -> tuple[GPT2LMHeadModel, Path]:
        size = changes.pop("max_shard_size", "1GB")
        model = random_gpt2(**changes)
        model.save_pretrained(tmp_path / "theirs", max_shard_size=size)
        return model, tmp_path / "theirs"

    return save

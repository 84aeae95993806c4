"""Configs of runs that no test trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from tests.conftest import small_values


@pytest.fixture
def config() -> Callable[..., Config]:
    """A small run, 8 sequences of 32 tokens a step, with sections changed as asked."""

    def make(**sections: dict[str, Any]) -> Config:
        values = small_values(Path("nowhere"))
        return parse_config({**values, **{name: {**values[name], **change} for name, change in sections.items()}})

    return make


@pytest.fixture
def gpt2() -> Callable[..., Config]:
    """GPT-2 small as in its config file: 512 sequences of 1,024 tokens a step, micro-batches of 16, bf16."""

    def make(preset: str = "124M", **train: Any) -> Config:
        values = small_values(Path("nowhere"))
        values["model"] = {"preset": preset}
        values["train"] |= {"tokens_per_step": 524_288, "micro_batch_sequences": 16, "precision": "bf16", **train}
        return parse_config(values)

    return make

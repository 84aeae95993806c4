"""Imported weights against transformers, where it is installed. The home of transformers, an extra."""

from pathlib import Path

import torch
from torch import Tensor

from gptscale.config.schema import ModelConfig
from gptscale.errors import WeightsError, first_line
from gptscale.model.gpt import GPTModel

TOLERANCE = 1e-4
"""Of the largest logit: two implementations in float32 differ by far less, wrong weights by far more."""
PROBE_TOKENS = 64


def probe(cfg: ModelConfig) -> Tensor:
    """Two rows of tokens that a model can read."""
    length = min(PROBE_TOKENS, cfg.context_length)
    return torch.randint(cfg.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def their_logits(folder: Path, tokens: Tensor) -> Tensor | str:
    """What transformers computes with a folder's weights, which it lets go of; or why it does not."""
    try:
        from transformers import GPT2LMHeadModel
        from transformers.utils import logging
    except ImportError:
        return "transformers is not installed"
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    except Exception as error:  # transformers' kinds are many
        return f"transformers cannot read this source ({first_line(error)})"
    return theirs(tokens).logits  # type: ignore[no-any-return]


@torch.no_grad()
def compare_logits(model: GPTModel, expected: Tensor, origin: str) -> float:
    """The largest difference between the model's logits for the probe and those that transformers gave.

    Raises WeightsError if the two are not the same function.
    """
    difference = float((model(probe(model.cfg)) - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise WeightsError(
            f"{origin}: the logits differ from transformers' by {difference:.3g}; nothing was imported. "
            "Its config.json asks for something that GPTModel does not compute"
        )
    return difference

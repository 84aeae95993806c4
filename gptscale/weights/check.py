"""Imported weights against transformers, where it is installed. The home of transformers, an extra."""

from pathlib import Path

import torch

from gptscale.errors import WeightsError
from gptscale.model.gpt import GPTModel

TOLERANCE = 1e-4
"""Of the largest logit: two implementations in float32 differ by far less, wrong weights by far more."""
PROBE_TOKENS = 64


@torch.no_grad()
def compare_logits(model: GPTModel, folder: Path) -> float | None:
    """The largest difference between the model's logits and those of transformers with a folder's weights.

    None if transformers is not installed. Raises WeightsError if they are not the same function.
    """
    try:
        from transformers import GPT2LMHeadModel
        from transformers.utils import logging
    except ImportError:
        return None
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    except Exception as error:  # transformers' kinds are many
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightsError(f"{folder}: transformers cannot read it ({first}); copy its config.json again") from None
    length = min(PROBE_TOKENS, model.cfg.context_length)
    tokens = torch.randint(model.cfg.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    expected = theirs(tokens).logits
    difference = float((model(tokens) - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise WeightsError(
            f"{folder}: the logits differ from transformers' by {difference:.3g}; nothing was imported. "
            "Its config.json asks for something that GPTModel does not compute"
        )
    return difference

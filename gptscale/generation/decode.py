"""Continuations of prompts, in a batch, beyond the context by sliding."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gptscale.data.tokenizer import Tokenizer
from gptscale.generation.sampling import choose
from gptscale.model.gpt import GPTModel

LogitsAt = Callable[[Tensor, Tensor], Tensor]
"""Maps token ids (B, T) and positions (B,) to the logits (B, V) there."""


def generate_text(
    model: GPTModel,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    end_token: int | None = None,
    seed: int = 0,
) -> list[str]:
    """Continue each prompt until end_token or max_new_tokens; gives prompt and continuation.

    end_token null is the tokenizer's end of text. The same seed gives the same text, whatever the
    device. An empty prompt starts a new document.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    rows = [tokenizer.encode(text) or [tokenizer.end_of_text] for text in texts]
    starts = [len(row) for row in rows]
    device = model.tok_emb.weight.device
    with _evaluating(model):
        grown = extend(
            lambda tokens, at: _uncompiled(model, tokens.to(device), at.to(device)),
            rows,
            context_length=model.cfg.context_length,
            max_new_tokens=max_new_tokens,
            end_token=tokenizer.end_of_text if end_token is None else end_token,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
    continued = [row[start:] for row, start in zip(grown, starts, strict=True)]
    return [text + tokenizer.decode(ids) for text, ids in zip(texts, continued, strict=True)]


@contextmanager
def _evaluating(model: GPTModel) -> Iterator[None]:
    """Without dropout, and afterwards as before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def extend(
    logits_at: LogitsAt,
    rows: Sequence[Sequence[int]],
    *,
    context_length: int,
    max_new_tokens: int,
    end_token: int | None = None,
    seed: int = 0,
    **sampling: Any,
) -> list[list[int]]:
    """Append to each row of token ids up to max_new_tokens; a row that draws end_token stops before it.

    The model sees the last context_length tokens of a row. Draws are made on the CPU in float32, so
    that a seed means the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    grown = [list(row) for row in rows]
    growing = list(range(len(grown)))
    for _ in range(max_new_tokens):
        if not growing:
            break
        tokens, at = _windows([grown[i] for i in growing], context_length)
        logits = logits_at(tokens, at).float().cpu()
        drawn = choose(logits, generator=generator, **sampling).tolist()
        for i, token in zip(growing, drawn, strict=True):
            if token != end_token:
                grown[i].append(token)
        growing = [i for i, token in zip(growing, drawn, strict=True) if token != end_token]
    return grown


def _uncompiled(model: GPTModel, tokens: Tensor, at: Tensor) -> Tensor:
    """Call the model without torch.compile: lengths change at every token, and each would be compiled."""
    with torch.compiler.set_stance("force_eager"):
        return model(tokens, at=at)  # type: ignore[no-any-return]


def _windows(rows: Sequence[Sequence[int]], context_length: int) -> tuple[Tensor, Tensor]:
    """The last tokens of each row as (B, T), filled up on the right, and the position of each row's last."""
    recent = [torch.tensor(row[-context_length:]) for row in rows]
    at = torch.tensor([len(row) - 1 for row in recent])
    return torch.nn.utils.rnn.pad_sequence(recent, batch_first=True), at

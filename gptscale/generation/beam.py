"""Beam search: the likeliest continuations, as far as a few at a time can find them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptscale.errors import ConfigError, WeightsError
from gptscale.generation.context import Context
from gptscale.model.gpt import GPTModel


@dataclass(frozen=True)
class Hypothesis:
    """A continuation; one that ended by itself has the end token as its last."""

    tokens: tuple[int, ...]
    score: float
    """Its log-probability divided by its length to the power of length_penalty."""


def beam_search(
    model: GPTModel,
    row: Sequence[int],
    *,
    beams: int,
    n_best: int = 1,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    end_token: int | None = None,
) -> list[Hypothesis]:
    """The n_best best of as many hypotheses as there are beams, best first.

    A length_penalty above 0 favours longer ones. Ends when the best running beam, at its length, is no better than
    the worst of the finished ones, as transformers does by default.
    """
    if n_best > beams:
        raise ConfigError(f"n_best={n_best} is more than beams={beams}; raise beams, or lower n_best")
    context = Context(model, [row], max_new_tokens=max_new_tokens)
    context.select([0] * beams)
    running = [Hypothesis((), 0.0)] + [Hypothesis((), -torch.inf)] * (beams - 1)  # all rows are still the same
    finished: list[Hypothesis] = []
    for length in range(1, max_new_tokens + 1):
        candidates = _best_continuations(running, context.logits, 2 * beams)
        last = length == max_new_tokens
        ended = [h for h, _ in candidates[:beams] if last or h.tokens[-1] == end_token]
        finished += [Hypothesis(h.tokens, h.score / length**length_penalty) for h in ended]
        finished = sorted(finished, key=lambda h: h.score, reverse=True)[:beams]
        going_on = [(h, parent) for h, parent in candidates if h.tokens[-1] != end_token][:beams]
        running = [h for h, _ in going_on]
        if last or not running or _cannot_improve(running[0], finished, beams, length**length_penalty):
            break
        context.select([parent for _, parent in going_on])
        context.append([h.tokens[-1] for h in running])
    if not finished and max_new_tokens:
        raise WeightsError("the model gives no finite logits after this prompt; choose an earlier checkpoint")
    return finished[:n_best]


def _best_continuations(running: Sequence[Hypothesis], logits: Tensor, count: int) -> list[tuple[Hypothesis, int]]:
    """The likeliest ways to go on from any beam, each with the beam it comes from; scores are log-probabilities."""
    before = torch.tensor([h.score for h in running], device=logits.device)
    scores = (logits.log_softmax(-1) + before[:, None]).flatten()
    best = scores.topk(min(count, int(scores.isfinite().sum())))
    vocab = logits.shape[-1]
    return [
        (Hypothesis((*running[i // vocab].tokens, i % vocab), score), i // vocab)
        for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _cannot_improve(best: Hypothesis, finished: Sequence[Hypothesis], beams: int, divisor: float) -> bool:
    return len(finished) == beams and best.score / divisor <= finished[-1].score

"""Cloze accuracy in the HellaSwag style: which of several endings does the model find likeliest?

The formulas are those of the lm-evaluation-harness, so the figures can be laid beside published ones.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gptscale.data.tokenizer import Tokenizer
from gptscale.errors import DataError
from gptscale.model.loss import IGNORE


@dataclass(frozen=True)
class Question:
    """A context and its possible endings, each of which follows after a space."""

    context: str
    endings: tuple[str, ...]
    label: int
    """The number of the right ending, from 0."""


@dataclass(frozen=True)
class ClozeScore:
    """Shares of the questions that were answered rightly; nan if the model gave no numbers for one."""

    acc: float
    """By the sum of the ending's log-probabilities."""
    acc_norm: float
    """By the sum divided by the ending's characters."""
    acc_bytes: float
    """By the sum divided by the ending's UTF-8 bytes."""
    questions: int

    @property
    def stderr(self) -> float:
        """Standard error of acc_norm."""
        return math.sqrt(self.acc_norm * (1 - self.acc_norm) / max(self.questions - 1, 1))


def read_questions(path: Path) -> list[Question]:
    """Read a JSONL file, a question a line: context, endings and label, or HellaSwag's own fields.

    Raises DataError that names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON may hold the other ends of lines
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; give a JSONL file of questions") from None
    questions = [_question(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not questions:
        raise DataError(f"{path} holds no question; write one JSON object a line")
    return questions


def log_likelihoods(
    losses_of: Callable[[Tensor, Tensor], Tensor],
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    context_length: int,
    device: torch.device,
) -> list[list[float]]:
    """For each question the log-probability of every ending, summed over its tokens.

    losses_of maps inputs and targets (B, T) to the cross-entropy of each token (B, T). An ending that does
    not fit behind its context loses the context's beginning.
    """
    found = []
    for question in questions:
        pairs = [_tokens(question.context, " " + ending, tokenizer) for ending in question.endings]
        inputs, targets = _rows(pairs, context_length)
        nats = losses_of(inputs.to(device), targets.to(device)).cpu().double().sum(1)
        found.append((-nats).tolist())
    return found


def score(questions: Sequence[Question], likelihoods: Sequence[Sequence[float]]) -> ClozeScore:
    """The shares of questions whose right ending has the highest log-probability; a tie goes to the first."""
    if not all(math.isfinite(s) for sums in likelihoods for s in sums):
        return ClozeScore(math.nan, math.nan, math.nan, len(questions))

    def share(size: Callable[[str], int]) -> float:
        """Where the log-probability of an ending counts divided by its size."""
        right = 0
        for question, sums in zip(questions, likelihoods, strict=True):
            values = [s / max(size(e), 1) for s, e in zip(sums, question.endings, strict=True)]
            right += values.index(max(values)) == question.label
        return right / len(questions)

    return ClozeScore(share(lambda _: 1), share(len), share(lambda ending: len(ending.encode())), len(questions))


def _question(path: Path, number: int, line: str) -> Question:
    try:
        fields = json.loads(line)
        if not isinstance(fields["endings"], list):
            raise TypeError(f"its endings are a {type(fields['endings']).__name__}, not a list")
        if "ctx_a" in fields:
            question = _hellaswag(fields)
        else:
            question = Question(fields["context"], tuple(fields["endings"]), _label(fields["label"]))
        if not all(isinstance(text, str) for text in (question.context, *question.endings)):
            raise TypeError("its context or an ending is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} line {number} is no question ({type(error).__name__}: {error}); it needs context, endings and "
            "label, or HellaSwag's activity_label, ctx_a, ctx_b, endings and label"
        ) from None
    if not 0 <= question.label < len(question.endings):
        raise DataError(
            f"{path} line {number}: label={question.label} names none of its {len(question.endings)} endings; "
            "count them from 0"
        )
    return question


def _hellaswag(fields: dict[str, Any]) -> Question:
    """A line of HellaSwag as the harness asks it."""
    context = f"{fields['activity_label']}: {fields['ctx_a']} {str(fields['ctx_b']).capitalize()}"
    endings = tuple(_plain(ending) for ending in fields["endings"])
    return Question(_plain(context), endings, _label(fields["label"]))


def _label(said: Any) -> int:
    """A number, or its digits, as HellaSwag has it."""
    if type(said) is not int and not (isinstance(said, str) and said.isdecimal()):
        raise TypeError(f"its label is {said!r}, no whole number")
    return int(said)


def _plain(text: str) -> str:
    """Text without the marks that WikiHow left in HellaSwag."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _tokens(context: str, ending: str, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """Context and ending as one text's tokens, and how many of them are the ending's.

    They are encoded together, since a border inside a word may merge; spaces at the context's end go to the ending.
    """
    bare = context.rstrip()
    ending = context[len(bare) :] + ending
    whole = tokenizer.encode(bare + ending)
    before = len(tokenizer.encode(bare))
    if not before:
        return [tokenizer.end_of_text, *whole], len(whole)
    return whole, len(whole) - before


def _rows(pairs: Sequence[tuple[list[int], int]], context_length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T), in which only the endings count; filled up on the right."""
    inputs, targets = [], []
    for tokens, count in pairs:
        kept = torch.tensor(tokens[-(context_length + 1) :])
        inputs.append(kept[:-1])
        targets.append(kept[1:].clone())
        targets[-1][: max(0, len(kept) - 1 - count)] = IGNORE
    return pad_sequence(inputs, batch_first=True), pad_sequence(targets, batch_first=True, padding_value=IGNORE)

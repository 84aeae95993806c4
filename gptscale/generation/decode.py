"""Rows of token ids that grow, each until it is stopped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from gptscale.generation.context import Context
from gptscale.generation.sampling import Sampling, draw, filtered, uniform_at
from gptscale.model.gpt import GPTModel


@dataclass(frozen=True)
class Token:
    """One more token of a row."""

    row: int
    id: int
    log_probability: float | None
    """ln of what the model gives it, before temperature and filters; None where nobody asked."""


class Decoder:
    """Continues rows of token ids side by side.

    What a row draws depends on the seed, its number and how far it has grown, never on the others.
    """

    def __init__(
        self,
        model: GPTModel,
        rows: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        max_new_tokens: int,
        seed: int = 0,
        log_probabilities: bool = False,
        agreed: Callable[[list[int]], list[int]] | None = None,
    ) -> None:
        """agreed gives what all ranks go on with for what this one has drawn, where they compute together: logits
        may differ in their last bits from one GPU to another, and with them what is drawn."""
        self.rows = [list(row) for row in rows]
        self.growing = list(range(len(rows))) if max_new_tokens else []
        """The rows that go on, by their numbers."""
        self._sampling, self._seed = sampling, seed
        self._log_probabilities, self._agreed = log_probabilities, agreed
        self._starts = [len(row) for row in rows]
        self._max_new_tokens = max_new_tokens
        self._read = list(self.growing)  # the rows of the context
        self._drawn = False
        self._context = Context(model, rows, max_new_tokens=max_new_tokens)

    def step(self) -> list[Token]:
        """Draw a token for every growing row."""
        if self._drawn:
            self._read_on()
        self._drawn = True
        logits = self._context.logits
        drawn = self._choose(logits)
        drawn = drawn if self._agreed is None else self._agreed(drawn)
        said = self._said(logits, drawn)
        tokens = [Token(row, i, p) for row, i, p in zip(self._read, drawn, said, strict=True)]
        for token in tokens:
            self.rows[token.row].append(token.id)
            if len(self.rows[token.row]) - self._starts[token.row] == self._max_new_tokens:
                self.stop(token.row)
        return tokens

    def stop(self, row: int) -> None:
        """Let a row end where it is."""
        if row in self.growing:
            self.growing.remove(row)

    def _read_on(self) -> None:
        """Read the tokens that were drawn last, of the rows that go on."""
        if self._read != self.growing:
            self._context.select([self._read.index(row) for row in self.growing])
            self._read = list(self.growing)
        self._context.append([self.rows[row][-1] for row in self._read])

    def _choose(self, logits: Tensor) -> list[int]:
        allowed = filtered(logits, [self.rows[row] for row in self._read], self._sampling)
        if self._sampling.temperature == 0:
            return allowed.argmax(-1).tolist()
        grown = ((row, len(self.rows[row]) - self._starts[row]) for row in self._read)
        return draw(allowed, [uniform_at(self._seed, row, position) for row, position in grown])

    def _said(self, logits: Tensor, drawn: Sequence[int]) -> list[float | None]:
        if not self._log_probabilities:
            return [None] * len(drawn)
        return [float(row[i]) for row, i in zip(logits.log_softmax(-1), drawn, strict=True)]

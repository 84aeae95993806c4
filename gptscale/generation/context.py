"""What a model has read: rows of token ids, with the keys and values of what the next token looks back at."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from gptscale.errors import ConfigError
from gptscale.model.cache import KVCache
from gptscale.model.gpt import GPTModel


class Context:
    """Rows of several lengths that grow by a token each, and the logits after them.

    A row sees at most context_length tokens. One that grows beyond starts anew from the later half of what it
    saw, since positions are absolute: a token then costs no more than before, but for one reading of the half.
    """

    def __init__(self, model: GPTModel, rows: Sequence[Sequence[int]], *, max_new_tokens: int) -> None:
        _check_ids(model, rows)
        self._model = model
        self._device = model.tok_emb.weight.device
        self._limit = model.cfg.context_length
        self._windows = [list(row[-self._limit :]) for row in rows]
        longest = max(len(window) for window in self._windows)
        self._capacity = min(self._limit, longest + max_new_tokens)
        self.logits = self._read()
        """After the last token of each row, (B, V), float32, on the model's device."""

    def append(self, tokens: Sequence[int]) -> None:
        """Put one more token at the end of each row."""
        full = [row for row, window in enumerate(self._windows) if len(window) == self._limit]
        for row in full:
            del self._windows[row][: -(self._limit // 2) or None]
        if 0 < len(full) < len(self._windows):
            self._read_again(full)
        for window, token in zip(self._windows, tokens, strict=True):
            window.append(token)
        if len(full) == len(self._windows):
            self.logits = self._read()
        else:
            self._cache.next_pass(self._device)
            self.logits = self._call(torch.tensor(tokens, device=self._device)[:, None], None, self._cache)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; one may be taken several times."""
        self._windows = [list(self._windows[row]) for row in rows]
        self._cache.select(rows)
        self.logits = self.logits[torch.tensor(rows, device=self.logits.device)]

    def _read(self) -> Tensor:
        """Read all windows from their beginnings."""
        lengths = [len(window) for window in self._windows]
        self._cache = KVCache(lengths, self._model.cfg.n_layers, self._capacity)
        rows = [torch.tensor(window) for window in self._windows]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        at = torch.tensor([length - 1 for length in lengths])
        return self._call(tokens.to(self._device), at.to(self._device), self._cache)

    def _read_again(self, rows: Sequence[int]) -> None:
        """Read the windows of some rows, which have the same length, from their beginnings."""
        tokens = torch.tensor([self._windows[row] for row in rows], device=self._device)
        read = KVCache([tokens.shape[1]] * len(rows), self._model.cfg.n_layers, tokens.shape[1])
        self._call(tokens, torch.full((len(rows),), tokens.shape[1] - 1, device=self._device), read)
        self._cache.replace(rows, read)

    @torch.no_grad()
    def _call(self, tokens: Tensor, at: Tensor | None, cache: KVCache) -> Tensor:
        """Without torch.compile: lengths change at every token, and each would be compiled."""
        compiles = "torch._dynamo" in sys.modules  # else set_stance would import it, which takes seconds
        with torch.compiler.set_stance("force_eager") if compiles else nullcontext():
            logits = self._model(tokens, at=at, cache=cache)
        return (logits if at is not None else logits[:, -1]).float()  # type: ignore[no-any-return]


def _check_ids(model: GPTModel, rows: Sequence[Sequence[int]]) -> None:
    largest = max((max(row) for row in rows), default=0)
    if largest >= model.cfg.vocab_size:
        raise ConfigError(
            f"the prompt has token {largest}, but model.vocab_size={model.cfg.vocab_size}; "
            "data.tokenizer is not the one that the model was trained with"
        )

"""Text from prompts: all at once, as it comes, or by beam search."""

import codecs
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gptscale.data.tokenizer import Tokenizer
from gptscale.data.vocabulary import bytes_of
from gptscale.errors import ConfigError
from gptscale.generation.beam import beam_search
from gptscale.generation.decode import Decoder, Token
from gptscale.generation.sampling import Sampling
from gptscale.model.gpt import GPTModel


@dataclass(frozen=True)
class Piece:
    """What one more token adds to the continuation of a prompt; nothing while a character is incomplete."""

    row: int
    text: str
    token: Token


def generate_text(
    model: GPTModel,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    end_token: int | None = None,
    seed: int = 0,
    agreed: Callable[[list[int]], list[int]] | None = None,
) -> list[str]:
    """Continue each prompt until end_token, a stop string or max_new_tokens; gives prompt and continuation.

    end_token null is the tokenizer's end of text; a stop string is left out. The same seed, prompts and device
    give the same text. An empty prompt starts a new document. agreed is for ranks that compute together, see `Decoder`.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    pieces = stream_text(
        model,
        tokenizer,
        list(texts),
        sampling=Sampling(temperature, top_k, top_p, min_p, repetition_penalty),
        max_new_tokens=max_new_tokens,
        stop=stop,
        end_token=end_token,
        seed=seed,
        agreed=agreed,
    )
    for piece in pieces:
        texts[piece.row] += piece.text
    return texts


def stream_text(
    model: GPTModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    sampling: Sampling,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    end_token: int | None = None,
    seed: int = 0,
    log_probabilities: bool = False,
    agreed: Callable[[list[int]], list[int]] | None = None,
) -> Iterator[Piece]:
    """The continuations of prompts as their tokens come, those of several prompts in turn."""
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens={max_new_tokens} is less than nothing; give 0 or more")
    if not prompts:
        return
    end_token = tokenizer.end_of_text if end_token is None else end_token
    writers = [Writer(tokenizer, stop) for _ in prompts]
    with evaluating(model):
        decoder = Decoder(
            model,
            [encoded(tokenizer, prompt) for prompt in prompts],
            sampling,
            max_new_tokens=max_new_tokens,
            seed=seed,
            log_probabilities=log_probabilities,
            agreed=agreed,
        )
        while decoder.growing:
            for token in decoder.step():
                writer = writers[token.row]
                text = writer.add(token.id) if token.id != end_token else ""
                if writer.stopped or token.id == end_token:
                    decoder.stop(token.row)
                if token.row not in decoder.growing and not writer.stopped:
                    text += writer.rest()
                yield Piece(token.row, text, token)


def search_text(
    model: GPTModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    beams: int,
    n_best: int = 1,
    max_new_tokens: int = 64,
    length_penalty: float = 1.0,
    stop: Sequence[str] = (),
    end_token: int | None = None,
) -> list[tuple[str, float]]:
    """The n_best likeliest continuations that beam search finds, each with its score; prompt included."""
    end_token = tokenizer.end_of_text if end_token is None else end_token
    with evaluating(model):
        found = beam_search(
            model,
            encoded(tokenizer, prompt),
            beams=beams,
            n_best=n_best,
            max_new_tokens=max_new_tokens,
            length_penalty=length_penalty,
            end_token=end_token,
        )
    return [(prompt + _written(tokenizer, h.tokens, stop, end_token), h.score) for h in found]


def encoded(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A prompt's token ids; an empty one is the end of the text before."""
    return tokenizer.encode(prompt) or [tokenizer.end_of_text]


class Writer:
    """Token ids to text as they come.

    What may still change is held back: the bytes of an incomplete character, and the beginning of a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        if not all(stops):
            raise ConfigError("a stop string is empty; give at least one character, or none at all")
        self._tokenizer, self._stops = tokenizer, stops
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False
        """Whether a stop string was met; the text ends before it."""

    def add(self, token: int) -> str:
        """The text that is certain with this token."""
        self._held += self._characters.decode(bytes_of([token], self._tokenizer.pieces))
        met = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if met:
            self.stopped = True
            return self._release(min(met))
        return self._release(len(self._held) - self._begun())

    def rest(self) -> str:
        """What is left at the end, without an incomplete character."""
        return self._release(len(self._held))

    def _begun(self) -> int:
        """Characters at the end that a stop string may begin with."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)

    def _release(self, characters: int) -> str:
        text, self._held = self._held[:characters], self._held[characters:]
        return text


@contextmanager
def evaluating(model: GPTModel) -> Iterator[None]:
    """Without dropout, and afterwards as before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _written(tokenizer: Tokenizer, tokens: Sequence[int], stop: Sequence[str], end_token: int) -> str:
    writer, text = Writer(tokenizer, stop), ""
    for token in tokens:
        if writer.stopped or token == end_token:
            break
        text += writer.add(token)
    return text if writer.stopped else text + writer.rest()

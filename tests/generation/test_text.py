from functools import partial
from typing import Any

import pytest
import torch

from gptscale.config.schema import ModelConfig
from gptscale.data.tokenizer import load_tokenizer
from gptscale.errors import ConfigError, WeightsError
from gptscale.generation.sampling import Sampling
from gptscale.generation.text import Writer, generate_text, search_text, stream_text
from gptscale.model.gpt import GPTModel

BYTES = load_tokenizer("bytes")


@pytest.fixture
def model() -> GPTModel:
    return GPTModel(ModelConfig(vocab_size=257, context_length=16, emb_dim=32, n_heads=2, n_layers=1, drop_rate=0.5), 1)


class Alphabet(GPTModel):
    """A model of bytes that is sure the next letter follows the last, z by the end of text."""

    def __init__(self) -> None:
        super().__init__(ModelConfig(vocab_size=257, context_length=64, emb_dim=2, n_heads=1, n_layers=1))

    def forward(
        self, tokens: torch.Tensor, targets: object = None, at: object = None, cache: object = None
    ) -> torch.Tensor:
        super().forward(tokens, at=at, cache=cache)  # type: ignore[arg-type]
        last = tokens[torch.arange(len(tokens)), -1 if at is None else at]
        following = torch.where(last == ord("z"), 256, last + 1)
        logits = torch.nn.functional.one_hot(following, 257) * 100.0
        return logits if at is not None else logits[:, None]


def test_a_seed_decides_the_text_and_training_mode_is_left_as_it_was(model: GPTModel) -> None:
    a, b, c = (generate_text(model, BYTES, "hello", max_new_tokens=20, seed=s) for s in (1, 1, 2))
    assert a == b != c
    assert a[0].startswith("hello")
    assert model.training


def test_a_text_goes_on_with_what_the_ranks_agree_on() -> None:
    texts = generate_text(
        Alphabet(), BYTES, ["a", "m"], temperature=0, max_new_tokens=3, agreed=lambda drawn: [t + 1 for t in drawn]
    )
    assert texts == ["aceg", "moqs"]


def test_text_ends_at_the_end_of_text_another_token_or_its_length() -> None:
    write = partial(generate_text, Alphabet(), BYTES, ["w", "d"], temperature=0)
    assert write(max_new_tokens=6) == ["wxyz", "defghij"]
    assert write(max_new_tokens=3, end_token=ord("g")) == ["wxyz", "def"]


def test_a_stop_string_ends_a_text_and_is_left_out() -> None:
    texts = generate_text(Alphabet(), BYTES, ["a", "m"], temperature=0, max_new_tokens=20, stop=["fgh", "zz"])
    assert texts == ["abcde", "mnopqrstuvwxyz"]


def test_text_comes_as_soon_as_it_is_certain() -> None:
    pieces = list(
        stream_text(Alphabet(), BYTES, ["a"], sampling=Sampling(temperature=0), max_new_tokens=9, stop=["efx", "hij"])
    )
    assert [piece.text for piece in pieces] == ["b", "c", "d", "", "", "efg", "", "", ""]
    assert [piece.token.id for piece in pieces] == list(b"bcdefghij")


def written(writer: Writer, content: bytes) -> list[str]:
    return [*(writer.add(byte) for byte in content), writer.rest()]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("né€".encode(), ["n", "", "é", "", "", "€", ""]),
        ("é".encode()[:1], ["", ""]),
        ("😀".encode()[:3], ["", "", "", ""]),
        (b"a\xffb", ["a", "\ufffd", "b", ""]),
        (b"\xe2\x82a", ["", "", "\ufffda", ""]),
    ],
    ids=["whole", "cut-in-two", "cut-after-three", "no-utf-8", "broken-off"],
)
def test_a_character_is_held_back_until_it_is_whole(content: bytes, expected: list[str]) -> None:
    assert written(Writer(BYTES), content) == expected


def test_the_beginning_of_a_stop_string_is_held_back_until_it_turns_out_to_be_none() -> None:
    assert written(Writer(BYTES, ["abac"]), b"xabab") == ["x", "", "", "", "ab", "ab"]
    writer = Writer(BYTES, ["abac"])
    assert written(writer, b"ab") == ["", "", "ab"]
    assert not writer.stopped


def test_of_two_stop_strings_the_first_in_the_text_counts() -> None:
    writer = Writer(load_tokenizer("gpt2"), ["lo", "ell"])
    assert writer.add(load_tokenizer("gpt2").encode("hello")[0]) == "h"
    assert writer.stopped


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ConfigError, match="a stop string is empty; give at least one character"):
        Writer(BYTES, ["a", ""])


def test_beam_search_gives_texts_with_scores_and_refuses_more_than_it_has(model: GPTModel) -> None:
    found = search_text(Alphabet(), BYTES, "w", beams=3, n_best=2, max_new_tokens=6)
    assert found[0] == ("wxyz", pytest.approx(0.0, abs=1e-6))
    assert found[0][1] > found[1][1]
    assert search_text(Alphabet(), BYTES, "a", beams=2, max_new_tokens=9, stop=["de"])[0][0] == "abc"
    assert model.training
    with pytest.raises(ConfigError, match="n_best=3 is more than beams=2; raise beams, or lower n_best"):
        search_text(model, BYTES, "a", beams=2, n_best=3)


def test_beam_search_reads_the_prompt_once(model: GPTModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real, shapes = GPTModel.forward, []

    def forward(self: GPTModel, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shapes.append(tuple(tokens.shape))
        return real(self, tokens, *args, **kwargs)

    monkeypatch.setattr(GPTModel, "forward", forward)
    search_text(model, BYTES, "abc", beams=4, max_new_tokens=3)
    assert shapes == [(1, 3), (4, 1), (4, 1)]


def test_a_model_without_numbers_finds_no_text(model: GPTModel) -> None:
    model.final_norm.weight.data[0] = torch.nan
    assert search_text(model, BYTES, "ab", beams=2, max_new_tokens=0) == []
    with pytest.raises(WeightsError, match="no finite logits after this prompt; choose an earlier checkpoint"):
        search_text(model, BYTES, "ab", beams=2, max_new_tokens=5)


def test_nothing_to_write_is_written_at_once(model: GPTModel) -> None:
    assert generate_text(model, BYTES, []) == []
    assert generate_text(model, BYTES, "abc", max_new_tokens=0) == ["abc"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens=-1 is less than nothing; give 0 or more"),
        ({"top_k": 0}, "top_k=0 is no way to draw tokens; give 1 or more, or None for all tokens"),
        ({"top_p": 1.5}, "top_p=1.5 is no way to draw tokens; give from 0 to 1"),
        ({"min_p": -0.1}, "min_p=-0.1 is no way to draw tokens"),
        ({"temperature": -1.0}, "temperature=-1.0 is no way to draw tokens; give 0 or more"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 is no way to draw tokens; give more than 0"),
    ],
)
def test_what_nothing_can_be_drawn_with_is_one_line(model: GPTModel, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        generate_text(model, BYTES, "abc", **options)

import pytest
import torch
from torch import Tensor

from gptscale.config.schema import ModelConfig
from gptscale.data.tokenizer import load_tokenizer
from gptscale.generation.decode import extend, generate_text
from gptscale.model.gpt import GPTModel

CONTEXT = 4


def next_is_one_more(seen: list[list[list[int]]]) -> object:
    """A model of ten tokens that is sure the next token is the last plus one; notes what it was shown."""

    def logits_at(tokens: Tensor, at: Tensor) -> Tensor:
        seen.append([row[: end + 1] for row, end in zip(tokens.tolist(), at.tolist(), strict=True)])
        last = tokens[torch.arange(len(tokens)), at]
        return torch.nn.functional.one_hot((last + 1) % 10, 10) * 100.0

    return logits_at


def test_rows_of_several_lengths_grow_side_by_side_and_slide_past_the_context() -> None:
    seen: list[list[list[int]]] = []
    grown = extend(next_is_one_more(seen), [[0, 1, 2], [5]], context_length=CONTEXT, max_new_tokens=3)
    assert grown == [[0, 1, 2, 3, 4, 5], [5, 6, 7, 8]]
    assert seen == [[[0, 1, 2], [5]], [[0, 1, 2, 3], [5, 6]], [[1, 2, 3, 4], [5, 6, 7]]]


def test_a_row_stops_at_the_end_token_while_others_go_on() -> None:
    grown = extend(next_is_one_more([]), [[6], [0]], context_length=CONTEXT, max_new_tokens=4, end_token=8)
    assert grown == [[6, 7], [0, 1, 2, 3, 4]]


@pytest.fixture
def model() -> GPTModel:
    return GPTModel(ModelConfig(vocab_size=257, context_length=16, emb_dim=32, n_heads=2, n_layers=1, drop_rate=0.5), 1)


def test_a_seed_decides_the_text_and_training_mode_is_left_as_it_was(model: GPTModel) -> None:
    tokenizer = load_tokenizer("bytes")
    a, b, c = (generate_text(model, tokenizer, "hello", max_new_tokens=20, seed=s) for s in (1, 1, 2))
    assert a == b != c
    assert a[0].startswith("hello")
    assert model.training


def test_a_batch_writes_what_each_prompt_writes_alone(model: GPTModel) -> None:
    tokenizer = load_tokenizer("bytes")
    prompts = ["ab", "a longer prompt than the context", ""]
    together = generate_text(model, tokenizer, prompts, max_new_tokens=12, temperature=0)
    alone = [generate_text(model, tokenizer, p, max_new_tokens=12, temperature=0)[0] for p in prompts]
    assert together == alone


def test_another_end_token_can_be_given(model: GPTModel) -> None:
    tokenizer = load_tokenizer("bytes")
    long = generate_text(model, tokenizer, "x", max_new_tokens=12, temperature=0)[0]
    third = long.encode()[3]
    short = generate_text(model, tokenizer, "x", max_new_tokens=12, temperature=0, end_token=third)[0]
    assert short.encode() == long.encode()[: long.encode().index(third, 1)]

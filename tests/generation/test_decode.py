import subprocess
import sys
from typing import Any

import pytest
import torch

from gptscale.config.schema import ModelConfig
from gptscale.errors import ConfigError
from gptscale.generation.context import Context
from gptscale.generation.decode import Decoder
from gptscale.generation.sampling import Sampling, draw, filtered, uniform_at
from gptscale.model.gpt import GPTModel

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model() -> GPTModel:
    model = GPTModel(ModelConfig(vocab_size=31, context_length=8, emb_dim=32, n_heads=2, n_layers=2), seed=None).eval()
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data.normal_(0.0, 0.4, generator=generator)
    return model


def grown(model: GPTModel, rows: list[list[int]], sampling: Sampling, new: int = 20) -> list[list[int]]:
    decoder = Decoder(model, rows, sampling, max_new_tokens=new, seed=5)
    while decoder.growing:
        decoder.step()
    return decoder.rows


def test_a_row_that_outgrows_the_context_goes_on_from_the_later_half_of_what_it_saw(model: GPTModel) -> None:
    row = [3, 1, 4]
    (found,) = grown(model, [row], GREEDY, new=14)
    window = list(row)
    for token in found[3:]:
        with torch.no_grad():
            assert int(model(torch.tensor([window]))[0, -1].argmax()) == token
        window = [*(window[4:] if len(window) == 8 else window), token]  # the context is 8
    assert len(found) == 17


def test_a_prompt_beyond_the_context_is_seen_from_its_end(model: GPTModel) -> None:
    long = list(range(20))
    assert grown(model, [long], GREEDY, new=1)[0][-1] == grown(model, [long[-8:]], GREEDY, new=1)[0][-1]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.3, top_k=9)], ids=["greedy", "sampled"])
def test_the_cache_changes_no_token(model: GPTModel, sampling: Sampling) -> None:
    rows = [[1, 2, 3], [7], list(range(20))]
    expected = [list(row) for row in rows]
    for number, row in enumerate(expected):
        window = row[-8:]
        for place in range(20):  # each token by reading its whole window
            with torch.no_grad():
                allowed = filtered(model(torch.tensor([window]))[:, -1], [row], sampling)
            greedy = sampling.temperature == 0
            token = int(allowed.argmax()) if greedy else draw(allowed, [uniform_at(5, number, place)])[0]
            row.append(token)
            window = [*(window[4:] if len(window) == 8 else window), token]  # the context is 8
    assert grown(model, rows, sampling) == expected


def test_a_batch_of_several_lengths_writes_what_each_row_writes_alone(model: GPTModel) -> None:
    rows = [[1, 2, 3], [7], list(range(20)), [1, 2]]
    assert grown(model, rows, GREEDY) == [grown(model, [row], GREEDY)[0] for row in rows]


def test_what_a_row_draws_hangs_on_its_number_and_not_on_the_others(model: GPTModel) -> None:
    sampling = Sampling(temperature=1.5)
    a, b, c = grown(model, [[1], [2, 3], [1]], sampling)
    assert grown(model, [[1], [9, 9, 9, 9]], sampling)[0] == a
    assert grown(model, [[8], [2, 3]], sampling)[1] == b
    assert a != c  # the same prompt twice gives two texts


def test_a_stopped_row_leaves_the_others_as_they_are(model: GPTModel) -> None:
    rows = [[1, 2, 3], [7], [4, 4]]
    alone = grown(model, rows, GREEDY, new=9)
    decoder = Decoder(model, rows, GREEDY, max_new_tokens=9)
    steps = 0
    while decoder.growing:
        steps += 1
        tokens = decoder.step()
        assert [token.row for token in tokens] == ([0, 1, 2] if steps <= 2 else [0, 2])
        if steps == 2:
            decoder.stop(1)
    assert decoder.rows == [alone[0], alone[1][:3], alone[2]]


def test_log_probabilities_are_the_models_own(model: GPTModel) -> None:
    decoder = Decoder(model, [[5, 6]], Sampling(temperature=0.5, top_k=2), max_new_tokens=1, log_probabilities=True)
    (token,) = decoder.step()
    with torch.no_grad():
        expected = model(torch.tensor([[5, 6]]))[0, -1].log_softmax(-1)[token.id]
    assert token.log_probability == pytest.approx(float(expected), abs=1e-5)


def test_a_token_that_the_model_does_not_know_is_refused(model: GPTModel) -> None:
    with pytest.raises(ConfigError, match="has token 31, but model.vocab_size=31; data.tokenizer is not the one"):
        Context(model, [[1, 31]], max_new_tokens=1)


def test_the_cache_is_read_one_token_at_a_time(model: GPTModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    hidden = GPTModel.hidden

    def counted(self: GPTModel, tokens: torch.Tensor, *args: object) -> torch.Tensor:
        read.append(tokens.numel())
        return hidden(self, tokens, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(GPTModel, "hidden", counted)
    grown(model, [[1, 2, 3]], GREEDY, new=11)
    # The prompt, five tokens up to the context of 8, then half of it with the next token, and three more.
    assert read == [3, 1, 1, 1, 1, 1, 5, 1, 1, 1, 5]


def test_ranks_go_on_with_what_they_agree_on_and_not_with_what_each_has_drawn(model: GPTModel) -> None:
    drawn: list[list[int]] = []

    def first_rank(ids: list[int]) -> list[int]:
        drawn.append(ids)
        return [30 - i for i in ids]

    decoder = Decoder(model, [[1, 2, 3]], GREEDY, max_new_tokens=3, agreed=first_rank)
    tokens = [decoder.step()[0].id for _ in range(3)]
    assert tokens == [30 - ids[0] for ids in drawn]
    assert decoder.rows == [[1, 2, 3, *tokens]]
    assert drawn[1] == [grown(model, [[1, 2, 3, tokens[0]]], GREEDY, new=1)[0][-1]]


def test_only_the_rows_that_outgrow_the_context_are_read_again(
    model: GPTModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, shapes = GPTModel.forward, []

    def forward(self: GPTModel, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shapes.append(tuple(tokens.shape))
        return real(self, tokens, *args, **kwargs)

    monkeypatch.setattr(GPTModel, "forward", forward)
    grown(model, [[1] * 7, [1] * 5, [1] * 5], GREEDY, new=8)
    again = [shape for shape in shapes[1:] if shape[1] > 1]
    assert again == [(1, 4), (2, 4), (1, 4)]  # the first after 1 token and 5 more, the others together after 3
    assert shapes[0] == (3, 7)


FRESH = """
import sys
from gptscale.config.schema import ModelConfig
from gptscale.generation.context import Context
from gptscale.model.gpt import GPTModel
model = GPTModel(ModelConfig(vocab_size=31, context_length=8, emb_dim=32, n_heads=2, n_layers=2), seed=None).eval()
for p in model.parameters():
    p.data.fill_(0.1)
Context(model, [[1, 2]], max_new_tokens=2).append([3])
print("torch._dynamo" in sys.modules)
"""


def test_writing_does_not_load_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

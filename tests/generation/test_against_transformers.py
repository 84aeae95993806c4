"""Generation beside transformers' `generate` on the same weights."""

from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel

from gptscale.generation.beam import beam_search
from gptscale.generation.decode import Decoder
from gptscale.generation.sampling import Sampling, filtered
from gptscale.model.gpt import GPTModel
from tests.generation.conftest import END, VOCABULARY, prompts

NEW = 24
THEIR_OPTIONS = {"max_new_tokens": NEW, "eos_token_id": END, "pad_token_id": END}


def continued(model: GPTModel, row: list[int], sampling: Sampling, end: int = END) -> tuple[list[int], list[float]]:
    """A row's new tokens up to and with the end token, and their log-probabilities."""
    decoder = Decoder(model, [row], sampling, max_new_tokens=NEW, log_probabilities=True)
    said = []
    while decoder.growing:
        (token,) = decoder.step()
        said.append(token)
        if token.id == end:
            decoder.stop(0)
    return [token.id for token in said], [token.log_probability or 0.0 for token in said]


def up_to_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(END) + 1] if END in tokens else tokens


def their_greedy(theirs: GPT2LMHeadModel, row: list[int], **options: Any) -> Any:
    return theirs.generate(
        torch.tensor([row]),
        attention_mask=torch.ones(1, len(row), dtype=torch.int64),
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **THEIR_OPTIONS,
        **options,
    )


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_tokens_and_log_probabilities(theirs: GPT2LMHeadModel, ours: GPTModel, penalty: float) -> None:
    seen_ends = 0
    for row in prompts(12):
        out = their_greedy(theirs, row, repetition_penalty=penalty)
        expected = up_to_end(out.sequences[0, len(row) :].tolist())
        tokens, said = continued(ours, row, Sampling(temperature=0, repetition_penalty=penalty))
        assert tokens == expected
        logits = torch.stack(out.logits)[:, 0].log_softmax(-1)
        assert said == pytest.approx([float(logits[i, token]) for i, token in enumerate(tokens)], abs=1e-5)
        seen_ends += tokens[-1] == END
    assert seen_ends  # by the end token; others end at their length


@pytest.mark.parametrize(
    ("beams", "length_penalty"), [(2, 1.0), (4, 1.0), (3, 0.0), (5, 2.0), (3, -1.0), (1, 1.0), (11, 0.7)]
)
def test_beam_search(theirs: GPT2LMHeadModel, ours: GPTModel, beams: int, length_penalty: float) -> None:
    lengths = set()
    for row in prompts(12):
        out = their_greedy(
            theirs, row, num_beams=beams, num_return_sequences=beams, length_penalty=length_penalty, output_scores=True
        )
        found = beam_search(
            ours, row, beams=beams, n_best=beams, max_new_tokens=NEW, length_penalty=length_penalty, end_token=END
        )
        expected = [up_to_end(sequence) for sequence in out.sequences[:, len(row) :].tolist()]
        assert [list(h.tokens) for h in found] == expected
        if beams > 1:  # transformers has no scores for a single one
            assert [h.score for h in found] == pytest.approx(out.sequences_scores.tolist(), rel=1e-5, abs=1e-5)
        lengths |= {len(h.tokens) for h in found}
    assert len(lengths) > 1 or beams == 1 or length_penalty == 2


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"repetition_penalty": 1.3},
        {"temperature": 1.6, "top_k": 9, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 0.8},
    ],
    ids="+".join,
)
def test_filtered_distributions(theirs: GPT2LMHeadModel, ours: GPTModel, options: dict[str, Any]) -> None:
    told = {"top_k": 0, **options}  # theirs takes the 50 likeliest without a word
    for row in prompts(12):
        tokens = torch.tensor([row])
        out = theirs.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=True,
            return_dict_in_generate=True,
            output_scores=True,
            **{**THEIR_OPTIONS, "max_new_tokens": 1},
            **told,
        )
        expected = out.scores[0].softmax(-1)
        with torch.no_grad():
            logits = ours(tokens)[:, -1]
        found = filtered(logits, [row], Sampling(**options)).softmax(-1)
        assert found.shape == (1, VOCABULARY)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert torch.equal(found > 0, expected > 0)

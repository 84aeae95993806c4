"""A small model beside transformers' with the same weights, on which greedy text is not the same token over and over."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gptscale.config.schema import ModelConfig
from gptscale.model.gpt import GPTModel
from tests.model.test_gpt import copy_over

VOCABULARY, CONTEXT, END = 23, 64, 22


@pytest.fixture(scope="session")
def theirs() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=32,
        n_head=4,
        n_layer=2,
        bos_token_id=END,
        eos_token_id=END,
        tie_word_embeddings=False,
    )
    model = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(9)
    for p in model.parameters():
        p.data.normal_(0.0, 0.2, generator=generator)
    model.transformer.ln_f.weight.data.fill_(1.0)
    model.transformer.ln_f.bias.data.zero_()
    model.lm_head.weight.data[END] *= 4  # so that some rows end by themselves, at several lengths
    return model


@pytest.fixture(scope="session")
def ours(theirs: GPT2LMHeadModel) -> GPTModel:
    model = GPTModel(
        ModelConfig(
            vocab_size=VOCABULARY, context_length=CONTEXT, emb_dim=32, n_heads=4, n_layers=2, tie_embeddings=False
        )
    )
    copy_over(theirs, model)
    return model.eval()


def prompts(count: int, length: int = 7) -> list[list[int]]:
    """Random rows of token ids without the end token."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY - 1, (count, length), generator=generator).tolist()

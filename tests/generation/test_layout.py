import torch

from gptscale.config.schema import ModelConfig
from gptscale.generation.layout import by_columns
from gptscale.model.gpt import GPTModel


def test_wide_matrices_lie_by_columns_and_give_the_same_logits() -> None:
    cfg = ModelConfig(vocab_size=101, context_length=8, emb_dim=32, n_heads=2, n_layers=1)
    model, tokens = GPTModel(cfg).eval(), torch.tensor([[5, 17, 3]])
    with torch.no_grad():
        before = model(tokens)
        values = {name: p.clone() for name, p in model.named_parameters()}
        assert by_columns(model) is model
        torch.testing.assert_close(model(tokens), before, atol=1e-6, rtol=1e-6)
    assert all(torch.equal(p, values[name]) for name, p in model.named_parameters())
    by = {name for name, p in model.named_parameters() if p.dim() == 2 and not p.is_contiguous()}
    assert by == {"tok_emb.weight", "blocks.0.att.qkv.weight", "blocks.0.ff.fc.weight"}  # the head is the embedding
    assert model.tok_emb.weight is model.out_head.weight

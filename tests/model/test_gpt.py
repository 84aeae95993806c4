"""GPTModel against an independent implementation and published figures."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from gptscale.config.schema import ModelConfig
from gptscale.model.gpt import GPTModel
from gptscale.model.size import padded_vocab_size

SMALL = {"vocab_size": 101, "context_length": 24, "emb_dim": 48, "n_heads": 4, "n_layers": 3}


def reference(cfg: ModelConfig) -> GPT2LMHeadModel:
    """transformers' GPT-2 of the same shape, with random weights and biases everywhere."""
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=cfg.vocab_size,
            n_positions=cfg.context_length,
            n_embd=cfg.emb_dim,
            n_head=cfg.n_heads,
            n_layer=cfg.n_layers,
            tie_word_embeddings=cfg.tie_embeddings,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ).eval()
    generator = torch.Generator().manual_seed(5)
    for p in theirs.parameters():
        p.data.normal_(0.0, 0.3, generator=generator)
    return theirs


def copy_over(theirs: GPT2LMHeadModel, ours: GPTModel) -> None:
    """Copy weight by weight; their linear layers are stored transposed."""

    def put(to: Tensor, values: Tensor) -> None:
        to.data[: len(values)] = values

    put(ours.tok_emb.weight, theirs.transformer.wte.weight)
    put(ours.pos_emb.weight, theirs.transformer.wpe.weight)
    put(ours.out_head.weight, theirs.lm_head.weight)
    put(ours.final_norm.weight, theirs.transformer.ln_f.weight)
    put(ours.final_norm.bias, theirs.transformer.ln_f.bias)
    for a, b in zip(ours.blocks, theirs.transformer.h, strict=True):
        for mine, his in ((a.norm1, b.ln_1), (a.norm2, b.ln_2)):
            put(mine.weight, his.weight)
            put(mine.bias, his.bias)
        pairs = ((a.att.qkv, b.attn.c_attn), (a.att.out_proj, b.attn.c_proj))
        for mine, his in (*pairs, (a.ff.fc, b.mlp.c_fc), (a.ff.out_proj, b.mlp.c_proj)):
            put(mine.weight, his.weight.T)
            if mine.bias is None:
                his.bias.data.zero_()
            else:
                put(mine.bias, his.bias)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("qkv_bias", [True, False], ids=["bias", "no-bias"])
def test_logits_equal_those_of_transformers(tied: bool, qkv_bias: bool) -> None:
    cfg = ModelConfig(**SMALL, tie_embeddings=tied, qkv_bias=qkv_bias)
    ours, theirs = GPTModel(cfg).eval(), reference(cfg)
    copy_over(theirs, ours)
    tokens = torch.randint(0, 101, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = ours(tokens), theirs(tokens).logits
    assert a.shape == (3, 24, 101)
    torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()), rtol=1e-5)


@pytest.mark.parametrize(
    ("preset", "published"),
    [("124M", 124_439_808), ("350M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)],
)
def test_presets_have_the_published_parameter_counts(preset: str, published: int) -> None:
    with torch.device("meta"):
        model = GPTModel(ModelConfig(preset=preset), seed=None)
    assert model.num_parameters() == published


def test_a_untied_head_and_no_biases_change_the_count_as_on_paper() -> None:
    # 2 layers, C=8, T=4, V=10: tables 10*8 + 4*8 + 10*8 = 192; a block has matrices 12*64 = 768, linear
    # biases 8 + 32 + 8 = 48 (no qkv bias) and norm gains 16; the last norm has 8: 192 + 2*832 + 8 = 1864.
    cfg = ModelConfig(
        vocab_size=10,
        context_length=4,
        emb_dim=8,
        n_heads=2,
        n_layers=2,
        qkv_bias=False,
        norm_bias=False,
        tie_embeddings=False,
    )
    assert GPTModel(cfg).num_parameters() == 1864


def test_the_summed_loss_and_its_gradients_equal_plain_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptscale.model.size.LOGITS_PER_CHUNK", 5 * padded_vocab_size(101))  # 72 rows in 18 chunks
    model = GPTModel(ModelConfig(**SMALL, tie_embeddings=False))
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, 101, (3, 24), generator=generator)
    targets = torch.randint(0, 101, (3, 24), generator=generator)
    targets[0, :7] = -100

    ours = model(tokens, targets)
    ours.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    plain = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
    plain.backward()

    torch.testing.assert_close(ours, plain)
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, atol=2e-5, rtol=1e-5, msg=name)


def test_the_loss_scales_its_gradients() -> None:
    model = GPTModel(ModelConfig(**SMALL))
    tokens = torch.arange(24).unsqueeze(0)
    model(tokens, tokens).backward()
    whole = model.tok_emb.weight.grad.clone()
    model.zero_grad()
    (model(tokens, tokens) * 0.25).backward()
    torch.testing.assert_close(model.tok_emb.weight.grad, whole * 0.25)


def test_the_vocabulary_padding_is_never_seen_and_never_learns() -> None:
    model = GPTModel(ModelConfig(**SMALL))
    assert model.tok_emb.weight.shape[0] == 128
    tokens = torch.arange(24).unsqueeze(0)
    model(tokens, tokens).backward()
    assert model(tokens).shape[-1] == 101
    assert not model.tok_emb.weight[101:].any()
    assert not model.tok_emb.weight.grad[101:].any()


def test_the_vocabulary_padding_does_no_harm_beside_logits_far_below_it() -> None:
    model = GPTModel(ModelConfig(**SMALL, tie_embeddings=False))
    torch.nn.init.zeros_(model.final_norm.weight)
    torch.nn.init.ones_(model.final_norm.bias)
    model.out_head.weight.data[:101] = -200 / model.cfg.emb_dim  # all logits are -200, and those of padding 0
    tokens = torch.arange(24).unsqueeze(0)
    loss = model(tokens, tokens)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(24 * math.log(101), rel=1e-5)
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert float(model.out_head.weight.grad[50, 0]) == pytest.approx(24 / 101, rel=1e-5)  # no target
    assert not model.out_head.weight.grad[101:].any()


def test_a_position_does_not_see_the_future() -> None:
    model = GPTModel(ModelConfig(**SMALL)).eval()
    tokens = torch.randint(0, 101, (1, 24), generator=torch.Generator().manual_seed(3))
    changed = tokens.clone()
    changed[0, 10:] = 7
    torch.testing.assert_close(model(tokens)[:, :10], model(changed)[:, :10])
    assert not torch.allclose(model(tokens)[:, 10:], model(changed)[:, 10:])


def test_logits_at_one_position_are_those_of_the_whole() -> None:
    model = GPTModel(ModelConfig(**SMALL)).eval()
    tokens = torch.arange(48).view(2, 24)
    at = torch.tensor([5, 23])
    torch.testing.assert_close(model(tokens, at=at), model(tokens)[torch.arange(2), at])


def test_initial_weights_have_gpt2s_deviations() -> None:
    model = GPTModel(ModelConfig(vocab_size=640, context_length=64, emb_dim=256, n_heads=4, n_layers=8), seed=3)
    assert float(model.tok_emb.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert float(model.pos_emb.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert float(model.blocks[3].ff.fc.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert float(model.blocks[3].ff.out_proj.weight.detach().std()) == pytest.approx(
        0.02 / 4, rel=0.02
    )  # sqrt(2 * 8) = 4
    assert float(model.blocks[3].att.out_proj.weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.02)
    assert not model.blocks[3].att.qkv.bias.any()
    assert (model.final_norm.weight == 1).all()


def test_torchs_initial_weights_have_the_ranges_of_its_layers() -> None:
    cfg = ModelConfig(
        vocab_size=640, context_length=64, emb_dim=256, n_heads=4, n_layers=2, tie_embeddings=False, init="torch"
    )
    ours = dict(GPTModel(cfg, seed=3).named_parameters())
    torch.manual_seed(0)
    theirs = {
        "tok_emb.weight": torch.nn.Embedding(640, 256).weight,
        "pos_emb.weight": torch.nn.Embedding(64, 256).weight,
        "out_head.weight": torch.nn.Linear(256, 640).weight,
        "blocks.1.att.qkv.bias": torch.nn.Linear(256, 768).bias,
        "blocks.1.att.qkv.weight": torch.nn.Linear(256, 768).weight,
        "blocks.1.ff.fc.weight": torch.nn.Linear(256, 1024).weight,
        "blocks.1.ff.out_proj.weight": torch.nn.Linear(1024, 256).weight,
        "blocks.1.ff.out_proj.bias": torch.nn.Linear(1024, 256).bias,
        "blocks.1.norm2.weight": torch.nn.LayerNorm(256).weight,
        "blocks.1.norm2.bias": torch.nn.LayerNorm(256).bias,
    }
    for name, reference in theirs.items():
        a, b = ours[name].detach(), reference.detach()
        assert a.shape == b.shape
        assert float(a.mean()) == pytest.approx(float(b.mean()), abs=0.03), name
        assert float(a.std()) == pytest.approx(float(b.std()), rel=0.15), name
        assert float(a.abs().max()) == pytest.approx(float(b.abs().max()), rel=0.2), name


def test_initial_weights_follow_from_the_seed_alone() -> None:
    cfg = ModelConfig(**SMALL)
    torch.manual_seed(1)
    a = GPTModel(cfg, seed=9).state_dict()
    torch.manual_seed(2)
    b, c = GPTModel(cfg, seed=9).state_dict(), GPTModel(cfg, seed=10).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["tok_emb.weight"], c["tok_emb.weight"])


def test_dropout_is_where_gpt2_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    drop, attend = F.dropout, F.scaled_dot_product_attention

    def noted_drop(x: torch.Tensor, p: float, training: bool, inplace: bool) -> torch.Tensor:
        rates.append(p if training else 0.0)
        return drop(x, p, training, inplace)

    def noted_attend(*qkv: torch.Tensor, dropout_p: float, **options: Any) -> torch.Tensor:
        rates.append(dropout_p)
        return attend(*qkv, dropout_p=dropout_p, **options)

    monkeypatch.setattr(F, "dropout", noted_drop)
    monkeypatch.setattr(F, "scaled_dot_product_attention", noted_attend)
    cfg = ModelConfig(vocab_size=64, context_length=8, emb_dim=8, n_heads=2, n_layers=2, drop_rate=0.25)
    model = GPTModel(cfg)
    for training, rate in ((True, 0.25), (False, 0.0)):
        model.train(training)(torch.zeros(1, 8, dtype=torch.int64))
        # the embeddings, and in both blocks attention's weights and what either half adds to the stream
        assert rates == [rate] * (1 + 2 * 3)
        rates.clear()


def test_dropout_acts_in_training_only() -> None:
    model = GPTModel(ModelConfig(**SMALL, drop_rate=0.5))
    tokens = torch.arange(24).unsqueeze(0)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_more_tokens_than_positions_are_refused() -> None:
    model = GPTModel(ModelConfig(**SMALL))
    with pytest.raises(ValueError, match="25 tokens do not fit into context_length=24"):
        model(torch.zeros(1, 25, dtype=torch.int64))


def test_recomputed_blocks_give_the_same_loss_and_gradients_with_dropout() -> None:
    model = GPTModel(ModelConfig(**SMALL, drop_rate=0.3))
    tokens = torch.arange(48).view(2, 24)
    found = []
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        torch.manual_seed(4)
        loss = model(tokens, tokens)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_recomputing_keeps_fewer_activations() -> None:
    model = GPTModel(ModelConfig(**SMALL))
    kept = []
    for recompute in (False, True):
        model.recompute = recompute
        sizes: list[int] = []

        def pack(t: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(torch.arange(48).view(2, 24), torch.arange(48).view(2, 24))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3

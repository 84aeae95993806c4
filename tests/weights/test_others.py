"""The book's files and nanoGPT's, made here from a model of transformers, which says what they compute."""

import resource
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPT2LMHeadModel

from gptscale.checkpoint.layout import read_manifest, write_manifest
from gptscale.checkpoint.model import load_model
from gptscale.cli.export import export
from gptscale.cli.import_weights import import_weights
from gptscale.errors import WeightsError
from tests.weights.conftest import BYTES, assert_same, logits_of, random_gpt2
from tests.weights.test_round_trip import checkpoint


def book_state(theirs: GPT2LMHeadModel) -> dict[str, Tensor]:
    """The book's state_dict: query, key and value apart, matrices as (outputs, inputs), masks beside them."""
    t = theirs.transformer
    state = {
        "tok_emb.weight": t.wte.weight,
        "pos_emb.weight": t.wpe.weight,
        "final_norm.scale": t.ln_f.weight,
        "final_norm.shift": t.ln_f.bias,
        "out_head.weight": theirs.lm_head.weight,
    }
    for number, block in enumerate(t.h):
        b = f"trf_blocks.{number}."
        for i, which in enumerate(("query", "key", "value")):
            state[f"{b}att.W_{which}.weight"] = block.attn.c_attn.weight.chunk(3, dim=1)[i].T
            state[f"{b}att.W_{which}.bias"] = block.attn.c_attn.bias.chunk(3)[i]
        state[f"{b}att.mask"] = torch.ones(24, 24).triu(1)
        for name, conv in (
            ("att.out_proj", block.attn.c_proj),
            ("ff.layers.0", block.mlp.c_fc),
            ("ff.layers.2", block.mlp.c_proj),
        ):
            state[f"{b}{name}.weight"], state[f"{b}{name}.bias"] = conv.weight.T, conv.bias
        for name, norm in (("norm1", block.ln_1), ("norm2", block.ln_2)):
            state[f"{b}{name}.scale"], state[f"{b}{name}.shift"] = norm.weight, norm.bias
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def nanogpt_file(theirs: GPT2LMHeadModel, path: Path, bias: bool = True) -> None:
    """nanoGPT's ckpt.pt of a compiled model: matrices as (outputs, inputs), everything under one prefix."""
    state = {}
    for name, tensor in theirs.state_dict().items():
        matrix = any(part in name for part in ("c_attn", "c_proj", "c_fc")) and name.endswith("weight")
        if bias or not name.endswith("bias"):
            state[f"_orig_mod.{name}"] = tensor.T.contiguous() if matrix else tensor.clone()
    args = {"n_layer": 3, "n_head": 4, "n_embd": 48, "block_size": 24, "bias": bias, "vocab_size": 257, "dropout": 0.0}
    rest = {"optimizer": {"state": {}}, "iter_num": 5, "best_val_loss": torch.tensor(3.2), "config": {"dataset": "x"}}
    torch.save({"model": state, "model_args": args, **rest}, path)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("file", ["model.pth", "model_and_optimizer.pth"])
def test_the_books_files(tmp_path: Path, file: str, tied: bool, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = random_gpt2(tie_word_embeddings=tied)
    state = book_state(theirs)
    content = {"model_state_dict": state, "optimizer_state_dict": {"state": {}}} if "and" in file else state
    torch.save(content, tmp_path / file)
    import_weights(str(tmp_path / file), tmp_path / "ours", [*BYTES, "model.n_heads=4"])
    assert "logits not, since transformers cannot read this form" in capsys.readouterr().out
    ours, cfg = load_model(tmp_path / "ours")
    assert_same(logits_of(ours), logits_of(theirs))
    assert cfg.model.tie_embeddings == tied


def test_the_book_without_qkv_bias(tmp_path: Path) -> None:
    theirs = random_gpt2()
    for block in theirs.transformer.h:
        block.attn.c_attn.bias.data.zero_()
    state = {name: t for name, t in book_state(theirs).items() if ".W_" not in name or name.endswith("weight")}
    torch.save(state, tmp_path / "model.pth")
    import_weights(str(tmp_path / "model.pth"), tmp_path / "ours", [*BYTES, "model.n_heads=4"])
    ours, cfg = load_model(tmp_path / "ours")
    assert not cfg.model.qkv_bias
    assert_same(logits_of(ours), logits_of(theirs))


def test_the_books_heads_are_gpt2s_where_its_width_is_and_asked_for_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(book_state(random_gpt2(n_embd=768, n_head=12, n_layer=1)), tmp_path / "model.pth")
    assert import_weights(str(tmp_path / "model.pth"), tmp_path / "ours", BYTES).model.n_heads == 12
    assert "does not say its n_heads; n_heads=12 is GPT-2's for its size" in capsys.readouterr().out
    others = import_weights(str(tmp_path / "model.pth"), tmp_path / "others", [*BYTES, "model.n_heads=16"])
    assert others.model.n_heads == 16
    assert "n_heads=16 is the model section's, and n_heads=12 would be GPT-2's for its size" in capsys.readouterr().out
    torch.save(book_state(random_gpt2()), tmp_path / "small.pth")
    with pytest.raises(
        WeightsError, match="does not say how many heads its emb_dim=48 is divided into; give model.n_heads"
    ):
        import_weights(str(tmp_path / "small.pth"), tmp_path / "small")


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_nanogpts_file(tmp_path: Path, bias: bool) -> None:
    theirs = random_gpt2(activation_function="gelu")  # nanoGPT's is exact
    if not bias:
        for name, p in theirs.named_parameters():
            if name.endswith("bias"):
                p.data.zero_()
    nanogpt_file(theirs, tmp_path / "ckpt.pt", bias)
    import_weights(str(tmp_path / "ckpt.pt"), tmp_path / "ours", BYTES)
    ours, cfg = load_model(tmp_path / "ours")
    assert_same(logits_of(ours), logits_of(theirs))
    assert (cfg.model.qkv_bias, cfg.model.gelu) == (bias, "erf")


def test_a_config_may_have_biases_and_a_head_that_the_source_lacks(tmp_path: Path) -> None:
    theirs = random_gpt2(activation_function="gelu")
    for name, p in theirs.named_parameters():
        if name.endswith("bias"):
            p.data.zero_()
    nanogpt_file(theirs, tmp_path / "ckpt.pt", bias=False)
    more = ["model.qkv_bias=true", "model.norm_bias=true", "model.tie_embeddings=false"]
    import_weights(str(tmp_path / "ckpt.pt"), tmp_path / "ours", [*BYTES, *more])
    ours, _ = load_model(tmp_path / "ours")
    assert_same(logits_of(ours), logits_of(theirs))
    assert ours.out_head.weight is not ours.tok_emb.weight
    assert not ours.blocks[0].att.qkv.bias.any()


def test_nanogpts_config_may_be_anything(tmp_path: Path) -> None:
    nanogpt_file(random_gpt2(), tmp_path / "ckpt.pt")
    torch.save({**torch.load(tmp_path / "ckpt.pt"), "config": ["x"]}, tmp_path / "ckpt.pt")
    assert import_weights(str(tmp_path / "ckpt.pt"), tmp_path / "ours", BYTES).model.gelu == "erf"


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(257, 48).to_sparse(), "sparse_coo of float32"),
        (torch.ones(257, 48, dtype=torch.int64), "strided of int64"),
        (torch.ones(257, 48, dtype=torch.complex64), "strided of complex64"),
        (torch.ones(257, 48, device="meta"), "meta"),
    ],
    ids=["sparse", "int", "complex", "meta"],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # torch 2.14 says so
def test_only_plain_floating_point_numbers_are_weights(tmp_path: Path, tensor: Tensor, kind: str) -> None:
    random_gpt2().save_pretrained(tmp_path / "theirs")
    state = load_file(tmp_path / "theirs" / "model.safetensors")
    (tmp_path / "theirs" / "model.safetensors").unlink()
    torch.save({**state, "transformer.wte.weight": tensor}, tmp_path / "theirs" / "pytorch_model.bin")
    message = rf"transformer\.wte\.weight holds no plain floating-point numbers \({kind}\); save it as a float32 tensor"
    with pytest.raises(WeightsError, match=message):
        import_weights(str(tmp_path / "theirs"), tmp_path / "ours", BYTES)


@pytest.mark.parametrize("gelu", ["tanh", "erf"])
def test_an_export_to_nanogpt_has_its_names_and_comes_back(tmp_path: Path, gelu: str) -> None:
    ours = checkpoint(tmp_path / "ours", gelu=gelu, qkv_bias=False)
    told = export(tmp_path / "ours", tmp_path / "exported", form="nanogpt")
    assert [line for line in told if "nanoGPT computes GELU exactly, this model in its tanh form" in line] == told
    assert bool(told) == (gelu == "tanh")
    content = torch.load(tmp_path / "exported" / "ckpt.pt", weights_only=True)
    assert content["best_val_loss"] == inf  # unknown; every loss is lower, so nanoGPT keeps its next checkpoint
    block = [
        f"{part}.{kind}"
        for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        for kind in ("weight", "bias")
    ]
    names = {
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "transformer.ln_f.weight",
        "transformer.ln_f.bias",
        "lm_head.weight",
    }
    names |= {f"transformer.h.{number}.{name}" for number in range(2) for name in block}
    assert set(content["model"]) == names
    assert content["model"]["transformer.h.0.attn.c_attn.weight"].shape == (144, 48)
    assert content["model_args"] == {
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 48,
        "block_size": 24,
        "bias": True,
        "vocab_size": 257,
        "dropout": 0.0,
    }
    import_weights(str(tmp_path / "exported" / "ckpt.pt"), tmp_path / "again", BYTES)
    assert torch.equal(logits_of(load_model(tmp_path / "again")[0]), logits_of(ours))


def test_nanogpts_file_says_the_step_and_the_dropout(tmp_path: Path) -> None:
    checkpoint(tmp_path / "ours", drop_rate=0.25)
    write_manifest(tmp_path / "ours", replace(read_manifest(tmp_path / "ours"), step=7))
    export(tmp_path / "ours", tmp_path / "exported", form="nanogpt")
    content = torch.load(tmp_path / "exported" / "ckpt.pt", weights_only=True)
    assert (content["iter_num"], content["model_args"]["dropout"]) == (7, 0.25)


def test_a_disk_without_room_for_nanogpts_file_is_said(tmp_path: Path) -> None:
    checkpoint(tmp_path / "ours")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # the file has 300 kB
    try:
        with pytest.raises(WeightsError, match="ckpt.pt could not be written whole .*; make room on the disk of --to"):
            export(tmp_path / "ours", tmp_path / "exported", form="nanogpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("*exported*"))


def test_nanogpt_cannot_have_a_head_of_its_own(tmp_path: Path) -> None:
    checkpoint(tmp_path / "ours", tie_embeddings=False)
    with pytest.raises(WeightsError, match="model.tie_embeddings=false, but nanoGPT always ties its head"):
        export(tmp_path / "ours", tmp_path / "exported", form="nanogpt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state_dict; save model.state_dict()"),
        ({"a": torch.ones(1)}, "is neither a checkpoint of the book .* nor of nanoGPT"),
        ({1: torch.ones(1)}, "1 is no name of a tensor; save model.state_dict()"),
        ({"model": {}, "model_args": [3]}, "model is a dict, not a tensor; save model.state_dict()"),
        (
            {
                "model": {},
                "model_args": dict.fromkeys(("vocab_size", "block_size", "n_embd", "n_head", "n_layer"), "8"),
            },
            "model_args says vocab_size='8', which is no whole number above 0; copy it again",
        ),
        ({"a": 3}, "a is a int, not a tensor; save model.state_dict()"),
        ({"model_state_dict": 3}, "model_state_dict is a int; save model.state_dict()"),
        ({"model": {}, "model_args": {"n_layer": 3}}, "its model_args lack block_size; is it a ckpt.pt of nanoGPT's"),
        (
            {"tok_emb.weight": torch.ones(2, 2), "trf_blocks.0.norm1.scale": torch.ones(2)},
            "lacks the tensor pos_emb.weight; is it a whole checkpoint",
        ),
    ],
)
def test_another_pickle_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=message):
        import_weights(str(tmp_path / "model.pth"), tmp_path / "ours")

"""In and out: what transformers computes before and after is the same, bit for bit."""

import json
import random
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch
import transformers
from safetensors.torch import load_file, save_file, save_model
from tiktoken_ext import openai_public
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from gptscale.checkpoint.imported import write_imported
from gptscale.checkpoint.model import load_model
from gptscale.cli.export import export
from gptscale.cli.import_weights import import_weights
from gptscale.cli.subject import Subject
from gptscale.config.load import parse_config
from gptscale.config.schema import ModelConfig
from gptscale.data.bpe import GPT2_RANKS, GPT2_RANKS_SHA256, BpeTokenizer, read_ranks
from gptscale.data.tokenizer import load_tokenizer
from gptscale.errors import WeightsError
from gptscale.model.gpt import GPTModel
from gptscale.weights.tokenizer import write_tokenizer
from tests.weights.conftest import BYTES, assert_same, logits_of

SHAPES = {  # layers / 12, heads as they are, heads of width 4 instead of 64
    "124M": {"n_layer": 1, "n_head": 12, "n_embd": 48},
    "350M": {"n_layer": 2, "n_head": 16, "n_embd": 64},
    "774M": {"n_layer": 3, "n_head": 20, "n_embd": 80},
    "1558M": {"n_layer": 4, "n_head": 25, "n_embd": 100},
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("size", SHAPES)
def test_an_import_exports_to_the_same_logits(saved: Any, tmp_path: Path, size: str, tied: bool) -> None:
    theirs, folder = saved(**SHAPES[size], tie_word_embeddings=tied)
    import_weights(str(folder), tmp_path / "ours", BYTES)
    assert_same(logits_of(load_model(tmp_path / "ours")[0]), logits_of(theirs))
    export(tmp_path / "ours", tmp_path / "exported")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert torch.equal(logits_of(again), logits_of(theirs))
    assert again.lm_head.weight.shape == (257, SHAPES[size]["n_embd"])  # no row of padding
    assert f"| none | weights of {folder} |" in (tmp_path / "exported" / "README.md").read_text()
    assert (again.lm_head.weight is again.transformer.wte.weight) == tied


def test_a_head_of_its_own_that_the_config_does_not_say_is_kept(
    saved: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, folder = saved(tie_word_embeddings=False)
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    if transformers.__version__ < "5":  # which ties the two all the same
        monkeypatch.setitem(sys.modules, "transformers", None)
    import_weights(str(folder), tmp_path / "ours", BYTES)
    assert "holds a head of its own, so model.tie_embeddings=false, which config.json" in capsys.readouterr().out
    assert_same(logits_of(load_model(tmp_path / "ours")[0]), logits_of(theirs))


def test_an_embedding_that_is_there_by_the_heads_name_alone_is_read(saved: Any, tmp_path: Path) -> None:
    theirs, folder = saved()
    save_model(theirs, folder / "model.safetensors")  # writes one of two that are the same tensor
    assert "transformer.wte.weight" not in load_file(folder / "model.safetensors")
    import_weights(str(folder), tmp_path / "ours", BYTES)
    assert_same(logits_of(load_model(tmp_path / "ours")[0]), logits_of(theirs))


def test_a_head_that_is_the_embedding_is_read_once(saved: Any, tmp_path: Path) -> None:
    theirs, folder = saved()
    state = {name: p.contiguous().clone() for name, p in theirs.state_dict().items()}
    assert torch.equal(state["lm_head.weight"], state["transformer.wte.weight"])
    save_file(state, folder / "model.safetensors")
    import_weights(str(folder), tmp_path / "ours", BYTES)
    assert load_model(tmp_path / "ours")[1].model.tie_embeddings
    assert_same(logits_of(load_model(tmp_path / "ours")[0]), logits_of(theirs))


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("parts", ["1GB", "50KB"], ids=["one-file", "with-an-index"])
def test_every_form_of_a_folder_is_read(saved: Any, tmp_path: Path, pickled: bool, parts: str) -> None:
    theirs, folder = saved(max_shard_size=parts)
    if pickled:
        for path in folder.glob("*.safetensors*"):
            path.unlink()
        state = theirs.state_dict()
        state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 24, 24).tril()  # the masks of older versions
        names = list(state)
        cuts = [names] if parts == "1GB" else [names[:9], names[9:]]
        index = {name: f"pytorch_model-{number}.bin" for number, cut in enumerate(cuts) for name in cut}
        if len(cuts) > 1:
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        for number, cut in enumerate(cuts):
            # The Hub's own files are of the older form, which is no zip file.
            torch.save(
                {name: state[name] for name in cut},
                folder / ("pytorch_model.bin" if len(cuts) == 1 else f"pytorch_model-{number}.bin"),
                _use_new_zipfile_serialization=number == 1,
            )
    import_weights(str(folder), tmp_path / "ours", BYTES)
    assert_same(logits_of(load_model(tmp_path / "ours")[0]), logits_of(theirs))


def test_fewer_positions_are_cropped_and_told_and_more_are_refused(
    saved: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, folder = saved()
    import_weights(str(folder), tmp_path / "ours", [*BYTES, "model.context_length=10"])
    assert "positions: the first 10 of 24" in capsys.readouterr().out
    assert_same(logits_of(load_model(tmp_path / "ours")[0], length=10), logits_of(theirs, length=10))
    message = "knows 24 positions, fewer than model.context_length=25; set model.context_length=24 or less"
    with pytest.raises(WeightsError, match=message):
        import_weights(str(folder), tmp_path / "more", ["model.context_length=25"])
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    "model",
    [{"qkv_bias": False}, {"norm_bias": False}, {"tie_embeddings": False}, {"gelu": "erf"}],
    ids=lambda model: next(iter(model)),
)
def test_what_gpt2_does_not_have_is_exported_to_the_same_function(tmp_path: Path, model: dict[str, Any]) -> None:
    ours = checkpoint(tmp_path / "ours", **model)
    export(tmp_path / "ours", tmp_path / "exported")
    assert_same(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "exported")), logits_of(ours))


def test_an_export_says_where_a_text_ends_and_how_much_is_dropped(tmp_path: Path) -> None:
    checkpoint(tmp_path / "ours", drop_rate=0.25)  # of bytes, whose end of text is token 256
    export(tmp_path / "ours", tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    generation = json.loads((tmp_path / "exported" / "generation_config.json").read_text())
    for said in (config, generation):
        assert (said["bos_token_id"], said["eos_token_id"]) == (256, 256)
    assert [config[f"{place}_pdrop"] for place in ("resid", "embd", "attn")] == [0.25] * 3


def checkpoint(folder: Path, largest: float = 0.0, **model: Any) -> GPTModel:
    """A checkpoint of a random model of ours; gives the model."""
    cfg = ModelConfig(vocab_size=257, context_length=24, emb_dim=48, n_heads=4, n_layers=2, **model)
    ours = GPTModel(cfg, seed=4).eval()
    generator = torch.Generator().manual_seed(6)
    for p in ours.parameters():
        p.data.normal_(0.0, 0.3, generator=generator)  # rows of padding too, so that a leak would show
    if largest:
        ours.final_norm.bias.data[0] = largest
    values = {
        "run": {"dir": "none"},
        "model": cfg.model_dump(),
        "data": {"dir": "none", "source": {"path": "none"}, "tokenizer": "bytes"},
        "train": {"steps": 1, "tokens_per_step": 24, "micro_batch_sequences": 1},
    }
    folder.mkdir()
    write_imported(folder, parse_config(values), ((name, p.data) for name, p in ours.named_parameters()))
    return ours


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype_is_written(tmp_path: Path, dtype: str) -> None:
    ours = checkpoint(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "exported", dtype=dtype)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype="auto")
    assert {p.dtype for p in again.parameters()} == {getattr(torch, dtype)}
    found, expected = again.transformer.h[1].mlp.c_fc.weight, ours.blocks[1].ff.fc.weight.T
    assert torch.equal(found, expected.to(getattr(torch, dtype)))


def test_parts_have_the_chosen_size_and_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = checkpoint(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "whole")
    monkeypatch.setattr("gptscale.cli.export.MEGABYTE", 1000)  # so that a small model has parts
    export(tmp_path / "ours", tmp_path / "exported", part_size_mb=60)
    parts = sorted((tmp_path / "exported").glob("*.safetensors"))
    assert [part.name for part in parts] == [
        f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)
    ]
    assert len(parts) > 3
    assert all(part.stat().st_size < 60_000 + 4_000 for part in parts)  # and a header
    index = json.loads((tmp_path / "exported" / "model.safetensors.index.json").read_text())
    numbers = 257 * 48 + 24 * 48 + 2 * (12 * 48**2 + 13 * 48) + 2 * 48
    assert index["metadata"]["total_size"] == 4 * numbers
    assert_same(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "exported")), logits_of(ours))


def test_the_tokenizer_of_an_export_gives_our_ids(tmp_path: Path) -> None:
    texts = ["Hello  wörld\n\n 42 you're 日本 <|endoftext|>x", " ", "\t a'sS 1234567"]
    for name in ("gpt2", "bytes"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "gpt2"}')
        ours = load_tokenizer(name)
        write_tokenizer(folder, ours, 1024)
        theirs = AutoTokenizer.from_pretrained(folder)
        for text in texts:
            expected = [ours.encode(piece) for piece in text.split("<|endoftext|>")]
            ids = theirs(text)["input_ids"]
            assert ids == [*expected[0], *(i for piece in expected[1:] for i in [ours.end_of_text, *piece])]
            assert theirs.decode(ids) == text
        assert (theirs.eos_token_id, theirs.model_max_length) == (ours.end_of_text, 1024)


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base", "p50k_base"])
def test_the_pattern_of_an_export_cuts_as_tiktokens_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = read_ranks(GPT2_RANKS, GPT2_RANKS_SHA256)  # in place of those that tiktoken would download
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: ranks)
    settings = {**getattr(openai_public, name)(), "special_tokens": {"<|endoftext|>": 50256}, "explicit_n_vocab": None}
    ours = BpeTokenizer(name, tiktoken.Encoding(**settings))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    write_tokenizer(tmp_path, ours, 1024)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    letters = random.Random(0)
    texts = ["".join(letters.choices("aB é日1234567890 '\n\tsl.!?-_", k=30)) for _ in range(500)]
    assert [theirs(text)["input_ids"] for text in texts] == [ours.encode(text) for text in texts]


def test_a_float16_that_would_overflow_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "ours", largest=1e6)
    message = "final_norm.bias has values that float16 cannot hold; use --dtype float32"
    with pytest.raises(WeightsError, match=message):
        export(tmp_path / "ours", tmp_path / "exported", dtype="float16")
    assert not list(tmp_path.glob("*exported*"))


def test_weights_that_are_not_finite_are_refused_in_any_dtype(tmp_path: Path) -> None:
    checkpoint(tmp_path / "ours", largest=float("inf"))
    with pytest.raises(
        WeightsError, match="final_norm.bias has values that are not finite; take an earlier checkpoint"
    ):
        export(tmp_path / "ours", tmp_path / "exported")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "onnx"}, "--format=onnx is none of transformers, nanogpt"),
        ({"dtype": "int8"}, "--dtype=int8 is none of float32, bfloat16, float16"),
        ({"to": "ours"}, "exists; choose another folder, or move it away"),
        (
            {"to": "ours/manifest.json/new"},
            r"cannot write .*new \(.*File exists.*\); choose another folder, or make",
        ),
    ],
)
def test_an_export_that_cannot_be_made_is_refused(tmp_path: Path, options: dict[str, str], message: str) -> None:
    checkpoint(tmp_path / "ours")
    with pytest.raises(WeightsError, match=message):
        export(tmp_path / "ours", tmp_path / options.pop("to", "new"), **options)


def test_an_import_holds_one_model_at_a_time(saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = saved()
    read: list[weakref.ref[GPT2LMHeadModel]] = []
    from_pretrained = GPT2LMHeadModel.from_pretrained

    def noted(*args: Any, **options: Any) -> GPT2LMHeadModel:
        model = from_pretrained(*args, **options)
        read.append(weakref.ref(model))
        return model

    def loaded(path: Path) -> Any:
        assert [model() for model in read] == [None]  # theirs was read, and is gone
        read.clear()
        return load_model(path)

    monkeypatch.setattr(GPT2LMHeadModel, "from_pretrained", noted)
    monkeypatch.setattr("gptscale.checkpoint.model.load_model", loaded)
    import_weights(str(folder), tmp_path / "ours", BYTES)
    assert not read


@pytest.mark.parametrize(("form", "file"), [("transformers", "."), ("nanogpt", "ckpt.pt")])
def test_an_export_comes_back_with_its_tokenizer(tmp_path: Path, form: str, file: str) -> None:
    checkpoint(tmp_path / "ours")  # of bytes
    export(tmp_path / "ours", tmp_path / "exported", form=form)
    assert import_weights(str(tmp_path / "exported" / file), tmp_path / "again").data.tokenizer == "bytes"


def test_a_tokenizer_that_there_is_none_of_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "exported")
    config = tmp_path / "exported" / "config.json"
    config.write_text(config.read_text().replace('"gptscale_tokenizer": "bytes"', '"gptscale_tokenizer": "byte"'))
    with pytest.raises(
        WeightsError, match="data.tokenizer=byte is unknown; did you mean bytes.*; give data.tokenizer="
    ):
        import_weights(str(tmp_path / "exported"), tmp_path / "again")
    assert import_weights(str(tmp_path / "exported"), tmp_path / "again", BYTES).data.tokenizer == "bytes"


def test_a_vocabulary_that_cannot_be_gpt2s_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "exported")
    config = tmp_path / "exported" / "config.json"
    said = json.loads(config.read_text())
    del said["gptscale_tokenizer"]
    config.write_text(json.dumps(said))
    again = tmp_path / "again"
    import_weights(str(tmp_path / "exported"), again)
    told = capsys.readouterr().out
    assert "WARNING: its 257 tokens are fewer than the 50257 of gpt2" in told
    assert "name the model's own with data.tokenizer=..." in told
    refusal = (
        "gpt2 has 50257 tokens, but model.vocab_size=257; data.tokenizer is not the one that the model was trained"
    )
    with pytest.raises(WeightsError, match=refusal):  # its end of text would be a token that the model lacks
        export(again, tmp_path / "once-more")
    with pytest.raises(WeightsError, match=refusal):
        Subject(again)

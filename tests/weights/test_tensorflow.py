"""OpenAI's own form, written here with TensorFlow from a model of transformers. `make test-tensorflow` runs it."""

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tensorflow = pytest.importorskip("tensorflow", reason="TensorFlow is an extra; make test-tensorflow has it")

from transformers import GPT2LMHeadModel  # noqa: E402

from gptscale.checkpoint.model import load_model  # noqa: E402
from gptscale.cli.import_weights import import_weights  # noqa: E402
from gptscale.errors import WeightsError  # noqa: E402
from tests.weights.conftest import BYTES, assert_same, logits_of, random_gpt2  # noqa: E402

HPARAMS = {"n_vocab": 257, "n_ctx": 24, "n_embd": 48, "n_head": 4, "n_layer": 3}


def write_openai(theirs: GPT2LMHeadModel, folder: Path) -> None:
    """hparams.json and model.ckpt.*, matrices with an axis of length 1 before their own."""
    t, values = theirs.transformer, {}
    values["wte"], values["wpe"] = t.wte.weight, t.wpe.weight
    values["ln_f/g"], values["ln_f/b"] = t.ln_f.weight, t.ln_f.bias
    for number, block in enumerate(t.h):
        for name in ("ln_1", "ln_2"):
            values[f"h{number}/{name}/g"] = getattr(block, name).weight
            values[f"h{number}/{name}/b"] = getattr(block, name).bias
        for part, name in (("attn", "c_attn"), ("attn", "c_proj"), ("mlp", "c_fc"), ("mlp", "c_proj")):
            conv = getattr(getattr(block, part), name)
            values[f"h{number}/{part}/{name}/w"] = conv.weight[None]
            values[f"h{number}/{part}/{name}/b"] = conv.bias
    folder.mkdir()
    (folder / "hparams.json").write_text(json.dumps(HPARAMS))
    v1 = tensorflow.compat.v1
    with tensorflow.Graph().as_default(), v1.Session() as session:
        made = [v1.get_variable(f"model/{name}", initializer=v.detach().numpy()) for name, v in values.items()]
        session.run(v1.global_variables_initializer())
        v1.train.Saver(made).save(session, str(folder / "model.ckpt"), write_meta_graph=False)


@pytest.fixture
def openai(tmp_path: Path) -> tuple[GPT2LMHeadModel, Path]:
    theirs = random_gpt2()
    write_openai(theirs, tmp_path / "124M")
    return theirs, tmp_path / "124M"


def test_openais_checkpoint_imports_to_equal_logits(openai: tuple[GPT2LMHeadModel, Path], tmp_path: Path) -> None:
    theirs, folder = openai
    import_weights(str(folder), tmp_path / "ours", BYTES)
    assert_same(logits_of(load_model(tmp_path / "ours")[0]), logits_of(theirs))


def test_damaged_ones_are_refused(openai: tuple[GPT2LMHeadModel, Path], tmp_path: Path) -> None:
    _, folder = openai
    (folder / "hparams.json").write_text('{"n_vocab": 257}')
    with pytest.raises(WeightsError, match=r"hparams.json is not GPT-2's .*; copy it again"):
        import_weights(str(folder), tmp_path / "ours", BYTES)
    (folder / "model.ckpt.index").unlink()
    with pytest.raises(WeightsError, match="holds no whole TensorFlow checkpoint"):
        import_weights(str(folder), tmp_path / "ours", BYTES)

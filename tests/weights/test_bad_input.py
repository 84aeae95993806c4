"""What a user can get wrong: one line that says what is wrong and what mends it, and nothing left behind."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptscale.cli.import_weights import import_weights
from gptscale.errors import ConfigError, WeightsError
from tests.weights.conftest import BYTES


def refused(source: object, tmp_path: Path, message: str, *overrides: str) -> None:
    with pytest.raises(WeightsError, match=message):
        import_weights(str(source), tmp_path / "ours", overrides)
    assert not list(tmp_path.glob("*ours*"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt2-huge", "gpt2-huge is no file, no folder and no name of GPT-2's; did you mean gpt2-large"),
        ("345M", "345M is no file, no folder and no name of GPT-2's; did you mean 35"),
        ("llama", "llama is no file, no folder and no name of GPT-2's; known are gpt2, gpt2-medium"),
        ("weights.pth", "weights.pth does not exist; give a file, a folder, a run or a Hub name"),
        ("./nowhere", "./nowhere does not exist; give a file"),
    ],
)
def test_a_name_that_is_none(tmp_path: Path, name: str, message: str) -> None:
    refused(name, tmp_path, message)


def test_an_existing_folder_is_not_overwritten(saved: Any, tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    with pytest.raises(WeightsError, match="ours exists; choose another folder, or move it away"):
        import_weights(str(saved()[1]), tmp_path / "ours")


def test_truncated_safetensors(saved: Any, tmp_path: Path) -> None:
    _, folder = saved()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, tmp_path, "model.safetensors is cut short or no safetensors file .*; copy it again")


def test_an_index_that_does_not_fit_its_files(saved: Any, tmp_path: Path) -> None:
    _, folder = saved(max_shard_size="50KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": {**content["weight_map"], "extra": "model-00001-of-00010.safetensors"}}))
    refused(folder, tmp_path, "and its files do not agree about 'extra'; copy them again")
    index.write_text("{")
    refused(folder, tmp_path, "index.json cannot be read .*; copy it again")
    next(folder.glob("*-00002-*")).unlink()
    index.write_text(json.dumps(content))
    refused(folder, tmp_path, "00002-of-000.*safetensors is missing; copy it again")


def changed(folder: Path, change: Any) -> None:
    """Write a folder's tensors again, changed."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_nan(saved: Any, tmp_path: Path) -> None:
    _, folder = saved()
    changed(folder, lambda tensors: tensors["transformer.h.1.mlp.c_fc.bias"].__setitem__(3, float("nan")))
    refused(folder, tmp_path, r"h.1.mlp.c_fc.bias holds values that are not finite; take another copy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("transformer.h.2.ln_1.bias"), "lacks the tensor h.2.ln_1.bias; is it a whole checkpoint"),
        (lambda t: t.update(extra=torch.ones(1)), "has 1 tensors that GPTModel has no place for: extra"),
        (
            lambda t: t.update({"transformer.wpe.weight": torch.ones(24, 47)}),
            r"wpe.weight has shape \[24, 47\], where \[24, 48\] is expected",
        ),
    ],
    ids=["missing", "surplus", "misshapen"],
)
def test_a_tensor_that_is_missing_surplus_or_misshapen(saved: Any, tmp_path: Path, change: Any, message: str) -> None:
    _, folder = saved()
    changed(folder, change)
    refused(folder, tmp_path, message)


class Code:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["model.pth", "ckpt.pt", "folder/pytorch_model.bin"])
def test_code_in_a_pickle_does_not_run(saved: Any, tmp_path: Path, name: str, zipped: bool) -> None:
    source = tmp_path / name
    if "/" in name:
        saved()[1].rename(tmp_path / "folder")
        (tmp_path / "folder" / "model.safetensors").unlink()
        source = tmp_path / "folder"
    torch.save(
        {"a": torch.ones(1), "b": Code(tmp_path / "it-ran")}, tmp_path / name, _use_new_zipfile_serialization=zipped
    )
    refused(source, tmp_path, "holds more than tensors and plain values, which could run code, so it was not loaded")
    assert not (tmp_path / "it-ran").exists()
    torch.load(tmp_path / name, weights_only=False)
    assert (tmp_path / "it-ran").exists()  # the code was able to run


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html>", b"some text", b"\x80\x02\xff", (20240326).to_bytes(4, "little") * 300, b""]
)
def test_what_is_no_pickle_is_not_called_code(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    refused(tmp_path / "model.pth", tmp_path, "model.pth is cut short or no file of torch.save .*; copy it again")


def test_a_truncated_pickle(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "model.pth")
    (tmp_path / "model.pth").write_bytes((tmp_path / "model.pth").read_bytes()[:-200])
    refused(tmp_path / "model.pth", tmp_path, "model.pth is cut short or no file of torch.save .*; copy it again")


def with_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "is a llama, not a gpt2; GPTModel computes GPT-2's architecture only"),
        ({"activation_function": "relu"}, "has activation_function=relu; GPTModel knows gelu_new"),
        ({"n_inner": 100}, "has n_inner=100, but GPTModel computes with 192 only"),
        ({"layer_norm_epsilon": 1e-6}, "has layer_norm_epsilon=1e-06, but GPTModel computes with 1e-05 only"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True, but GPTModel"),
        ({"n_head": None}, "config.json lacks n_head; copy it again"),
        ({"n_embd": 48.0}, "config.json says n_embd=48.0, which is no whole number above 0; copy it again"),
        ({"n_embd": 10**9}, r"wte.weight has shape \[257, 48\], where \[257, 1000000000\] is expected"),
        ({"n_layer": 10**6}, "says n_layers=1000000, but holds 40 tensors; is it a whole checkpoint"),
        ({"activation_function": ["relu"]}, r"has activation_function=\['relu'\]; GPTModel knows gelu_new"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_architecture(saved: Any, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    _, folder = saved()
    with_config(folder, **changes)
    refused(folder, tmp_path, message)


@pytest.mark.parametrize(
    "changes", [{"resid_pdrop": "x"}, {"quantization_config": {"quant_method": "gptq", "bits": 4}}]
)
def test_what_transformers_cannot_read_is_imported_without_its_logits(
    saved: Any, tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = saved()
    with_config(folder, **changes)
    import_weights(str(folder), tmp_path / "ours", BYTES)
    told = capsys.readouterr().out
    assert "checked: names, shapes, finite values; logits not, since transformers cannot read this source (" in told


def test_an_index_without_metadata_is_enough(saved: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = saved(max_shard_size="50KB")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": json.loads(index.read_text())["weight_map"]}))
    import_weights(str(folder), tmp_path / "ours", BYTES)
    assert "logits not, since transformers cannot read this source ('metadata')" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_what_is_nested_too_deep_is_refused(saved: Any, tmp_path: Path, file: str) -> None:
    _, folder = saved(max_shard_size="50KB")
    (folder / file).write_text("[" * 100_000)
    refused(folder, tmp_path, f"{file} cannot be read .*; copy it again")


@pytest.mark.parametrize("override", ["model=3", "train=null", "model.context_length=null"])
def test_a_section_that_is_none(saved: Any, tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=f"import .*{override.split('=')[0]}"):
        import_weights(str(saved()[1]), tmp_path / "ours", [override])


def test_a_config_that_is_none(saved: Any, tmp_path: Path) -> None:
    _, folder = saved()
    (folder / "config.json").write_text("[]")
    refused(folder, tmp_path, r"config.json cannot be read \(it is no object\); copy it again")
    (folder / "config.json").write_text("{")
    refused(folder, tmp_path, "config.json cannot be read .*; copy it again")


def test_a_folder_without_weights(saved: Any, tmp_path: Path) -> None:
    _, folder = saved()
    (folder / "model.safetensors").unlink()
    refused(folder, tmp_path, "holds no weights: neither model.safetensors nor pytorch_model.bin")
    (folder / "config.json").unlink()
    refused(folder, tmp_path, "holds no weights that are known here: neither config.json .*, nor hparams.json")


def test_a_model_section_that_does_not_fit(saved: Any, tmp_path: Path) -> None:
    _, folder = saved(tie_word_embeddings=False)
    refused(
        folder,
        tmp_path,
        "has emb_dim=48, qkv_bias=true, tie_embeddings=false, but the model section says emb_dim=64, qkv_bias=false, "
        "tie_embeddings=true; set model.emb_dim=48 model.qkv_bias=true model.tie_embeddings=false",
        "model.emb_dim=64",
        "model.qkv_bias=false",
        "model.tie_embeddings=true",
    )


def test_logits_that_differ_from_transformers_are_refused(saved: Any, tmp_path: Path, monkeypatch: Any) -> None:
    _, folder = saved()
    # As if the table had a mistake that names and shapes do not show.
    from gptscale.weights import gpt2

    swapped = [
        row._replace(ours=row.ours.replace("norm1", "x").replace("norm2", "norm1").replace("x", "norm2"))
        for row in gpt2.ROWS
    ]
    monkeypatch.setattr(gpt2, "ROWS", tuple(swapped))
    refused(folder, tmp_path, "the logits differ from transformers' by .*; nothing was imported")


def test_tensorflow_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    (tmp_path / "124M").mkdir()
    (tmp_path / "124M" / "hparams.json").write_text("{}")
    refused(
        tmp_path / "124M", tmp_path, r"TensorFlow is not installed; in the clone of .*pip install .*'.\[tensorflow\]'"
    )

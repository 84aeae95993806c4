"""The same run on a CUDA device. Needs neither datasets, deepspeed nor wandb."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptscale.checkpoint.layout import read_manifest, step_dir
from gptscale.config.load import dump_config, load_config, parse_config
from gptscale.data.embedded import TextList
from gptscale.data.loader import StepLoader
from gptscale.data.prepare import prepare
from gptscale.data.sampler import Sampler
from gptscale.data.stream import TokenStream
from gptscale.model.loss import summed_cross_entropy
from tests.conftest import small_text, small_values

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ROOT = Path(__file__).parents[2]
TRAIN = "import sys; from gptscale import load_config, train; train(load_config(sys.argv[1]))"

Log = dict[str, list[float]]


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """20 steps of 8 sequences without dropout, whose masks differ between devices and precisions."""
    folder = tmp_path_factory.mktemp("gpu")
    values = small_values(folder)
    text = TextList([small_text()], {"path": "small_text"})  # reading a file would take datasets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptscale.data.job.open_source", lambda source: text)
        prepare(parse_config(values), say=lambda line: None)
    values["model"] |= {"drop_rate": 0.0}
    values["train"] |= {"micro_batch_sequences": 2}
    values["optim"] |= {"lr_peak": 3e-3, "lr_floor": 3e-4, "eps": 1e-4, "decay_steps": 20}
    return values


@pytest.fixture(scope="module")
def fp32(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Log:
    return trained(values, tmp_path_factory.mktemp("fp32"))


def trained(values: dict[str, Any], folder: Path, env: dict[str, str] | None = None, **sections: dict[str, Any]) -> Log:
    """What a run in a process of its own logged, by measurement."""
    sections["run"] = {"dir": str(folder / "run")}
    cfg = parse_config({**values, **{name: {**values[name], **change} for name, change in sections.items()}})
    (folder / "config.yaml").write_text(dump_config(cfg))
    settings = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    command = [sys.executable, "-c", TRAIN, str(folder / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=settings)
    assert done.returncode == 0, done.stdout + done.stderr
    on_gpu = "device: CPU" not in done.stdout
    assert on_gpu == (settings.get("CUDA_VISIBLE_DEVICES") != ""), done.stdout
    log: Log = {}
    for record in map(json.loads, (folder / "run" / "log.jsonl").read_text().splitlines()):
        for measurement, value in record.items():
            log.setdefault(measurement, []).append(value)
    return log


def approx(log: Log, rel: float) -> Any:
    return pytest.approx(log["train/loss"] + log["val/loss"], rel=rel)


def losses(log: Log) -> list[float]:
    return log["train/loss"] + log["val/loss"]


def test_fp32_gives_the_run_of_a_cpu(values: dict[str, Any], tmp_path: Path, fp32: Log) -> None:
    on_cpu = trained(values, tmp_path, {"CUDA_VISIBLE_DEVICES": ""})
    assert losses(fp32) == approx(on_cpu, rel=1e-4)
    assert fp32["train/grad_norm"] == pytest.approx(on_cpu["train/grad_norm"], rel=1e-3)


# bf16 numbers are off by up to 2^-9 = 2e-3 of themselves, fp16's by 2^-12.
@pytest.mark.parametrize(("precision", "rel"), [("bf16", 1e-2), ("fp16", 1e-3)])
def test_16_bits_follow_32(values: dict[str, Any], tmp_path: Path, fp32: Log, precision: str, rel: float) -> None:
    found = trained(values, tmp_path, train={"precision": precision})
    assert losses(found) == approx(fp32, rel)
    assert losses(found) != approx(fp32, rel=1e-7)


def test_fp16_leaves_its_loss_scale_in_the_checkpoint(values: dict[str, Any], tmp_path: Path) -> None:
    trained(values, tmp_path, train={"precision": "fp16"})
    ledger = read_manifest(step_dir(tmp_path / "run", 20)).ledger
    # 2^16, unless a step overflowed and was left out
    assert ledger["loss_scaler"]["scale"] in [2.0**n for n in range(10, 17)]


@pytest.mark.parametrize(("precision", "rel"), [("fp32", 1e-4), ("bf16", 1e-2)])
def test_a_compiled_run_follows_the_plain_one(
    values: dict[str, Any], tmp_path: Path, fp32: Log, precision: str, rel: float
) -> None:
    compiled = trained(values, tmp_path, train={"precision": precision, "compile": True})
    assert losses(compiled) == approx(fp32, rel)


def test_recomputed_activations_give_the_same_run_with_the_same_masks(values: dict[str, Any], tmp_path: Path) -> None:
    folders = [tmp_path / "plain", tmp_path / "recomputed"]
    for folder in folders:
        folder.mkdir()
    dropout = {"drop_rate": 0.1}
    plain = trained(values, folders[0], model=dropout)
    recomputed = trained(values, folders[1], model=dropout, train={"activation_checkpointing": True})
    assert losses(recomputed) == approx(plain, rel=1e-4)


def test_the_largest_micro_batch_that_fits_is_found_and_remembered(
    values: dict[str, Any], tmp_path: Path, fp32: Log
) -> None:
    found = trained(values, tmp_path, train={"micro_batch_sequences": "auto"})
    assert load_config(tmp_path / "run" / "config.yaml").train.micro_batch_sequences == 8  # a whole step
    assert losses(found) == approx(fp32, rel=1e-4)


def test_a_run_goes_on_from_its_checkpoint(values: dict[str, Any], tmp_path: Path, fp32: Log) -> None:
    first = trained(values, tmp_path, train={"steps": 10})
    assert len(first["train/loss"]) == 10
    whole = trained(values, tmp_path, train={"steps": 20})
    assert whole["train/tokens_per_s"][:10] == first["train/tokens_per_s"]  # so these steps were not done again
    assert whole["train/loss"] == pytest.approx(fp32["train/loss"], rel=1e-4)


def test_the_loss_rounds_its_gradients_once() -> None:
    factor = 1 / 192  # lies between two numbers of bf16
    hidden = torch.randn(192, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(256, 64, device="cuda", requires_grad=True)
    targets = torch.randint(0, 250, (192,), device="cuda")
    grads = []
    for scale in (1.0, factor):
        with torch.autocast("cuda", torch.bfloat16):
            loss = summed_cross_entropy(hidden, weight, targets, 250)
        grads.append(torch.autograd.grad(loss * scale, (hidden, weight)))
    for whole, scaled in zip(*grads, strict=True):
        assert torch.equal(scaled, (whole.float() * factor).to(scaled.dtype))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resume_is_proved_bit_for_bit(values: dict[str, Any], tmp_path: Path, precision: str, compiled: bool) -> None:
    train = values["train"] | {"precision": precision, "compile": compiled}
    train["activation_checkpointing"] = precision == "bf16"  # whose dropout is drawn again
    changes = {"train": train, "model": values["model"] | {"drop_rate": 0.1}, "run": {"dir": str(tmp_path / "run")}}
    (tmp_path / "config.yaml").write_text(dump_config(parse_config({**values, **changes})))
    command = [sys.executable, "-m", "gptscale", "prove-resume", str(tmp_path / "config.yaml"), "--steps", "20"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-exact: every loss and gradient norm of 20 steps is the same" in done.stdout


@pytest.mark.parametrize("env", [{}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}], ids=["none", "fsdp2"])
def test_muon_gives_the_run_of_a_cpu(values: dict[str, Any], tmp_path: Path, env: dict[str, str]) -> None:
    folders = [tmp_path / "cpu", tmp_path / "gpu"]
    for folder in folders:
        folder.mkdir()
    on_cpu = trained(values, folders[0], {"CUDA_VISIBLE_DEVICES": ""}, optim={"name": "muon"})
    found = trained(values, folders[1], env, optim={"name": "muon"})
    # a GPU orthogonalizes in bf16, an older CPU in fp32
    assert losses(found) == approx(on_cpu, rel=5e-3)


def test_one_gpu_under_fsdp2_gives_the_same_run(values: dict[str, Any], tmp_path: Path, fp32: Log) -> None:
    found = trained(values, tmp_path, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"})
    assert losses(found) == approx(fp32, rel=1e-4)


def test_pinned_batches_are_not_written_again_while_they_are_copied() -> None:
    stream = TokenStream([np.arange(2**16, dtype=np.uint16)])  # token i has the value i
    settings: dict[str, Any] = {
        "context_length": 256, "sequences_per_step": 32, "micro_batch_sequences": 32, "rank": 0, "world": 1,
        "sampler": Sampler(samples=255, stride=256, seed=7), "total_steps": 200,
    }  # fmt: skip
    with StepLoader(stream, **settings, pin=True) as loader:
        assert loader.next_step()[0].inputs.is_pinned()
        busy = torch.ones(4096, 4096, device="cuda")
        copies = []
        for _ in range(199):
            busy = busy @ busy / 4096  # keeps the device behind, so that copies wait while the loader goes on
            batch = loader.next_step()[0]
            copies.append([part.to("cuda", non_blocking=True) for part in (batch.inputs, batch.targets)])
            del batch
    with StepLoader(stream, **settings) as loader:
        loader.next_step()
        for inputs, targets in copies:
            (expected,) = loader.next_step()
            assert torch.equal(inputs.cpu(), expected.inputs)
            assert torch.equal(targets.cpu(), expected.targets)

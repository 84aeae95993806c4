"""What a config can ask for beside the plain recipe, under the engines: the same numbers, or a clear no."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.dist.conftest import ENGINES, Done, changed, launch, torchrun

pytestmark = pytest.mark.dist


def six_steps(values: dict[str, Any], folder: Path, engine: str, **sections: dict[str, Any]) -> Done:
    train = {"steps": 6, **sections.pop("train", {})}
    few = {"sample": {"prompts": []}, "eval": {"sequences": 4, "train_sequences": None}}
    cfg = changed(values, folder / engine, train=train, **few, **sections)
    return launch(cfg, [sys.executable] if engine == "none" else torchrun(2), ENGINES.get(engine, {}))


def losses(done: Done) -> list[float]:
    assert done.returncode == 0, done.output
    return done.log("train/loss") + done.log("train/grad_norm")


@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
def test_recomputed_activations_give_the_same_run(plain_values: dict[str, Any], tmp_path: Path, engine: str) -> None:
    plain = six_steps(plain_values, tmp_path, "none")
    recomputed = six_steps(plain_values, tmp_path, engine, train={"activation_checkpointing": True})
    assert losses(recomputed) == pytest.approx(losses(plain), rel=1e-5)


def test_muon_takes_its_distributed_form_under_fsdp2(plain_values: dict[str, Any], tmp_path: Path) -> None:
    muon = {"optim": {"name": "muon"}}
    one, two = (six_steps(plain_values, tmp_path, engine, **muon) for engine in ("none", "fsdp2"))
    # Muon orthogonalizes in bf16, so other orders of summation show at 1e-3 of an update, far below the loss's change.
    assert losses(two) == pytest.approx(losses(one), rel=5e-4)
    assert losses(one) != pytest.approx(losses(six_steps(plain_values, tmp_path / "adamw", "none")), rel=5e-4)


def test_muon_under_zero_is_refused(plain_values: dict[str, Any], tmp_path: Path) -> None:
    done = six_steps(plain_values, tmp_path, "zero2", optim={"name": "muon"})
    assert done.returncode != 0
    assert done.output.count("gptscale: optim.name=muon needs whole matrices, and ZeRO cuts them") == 1


@pytest.mark.parametrize("engine", ["ddp", "zero3", "fsdp2"])
def test_a_compiled_run_gives_the_same_numbers(plain_values: dict[str, Any], tmp_path: Path, engine: str) -> None:
    still = {"model": {"drop_rate": 0.0, "n_layers": 1}}  # compiled masks are drawn in another order
    plain = six_steps(plain_values, tmp_path, "none", **still)
    compiled = six_steps(plain_values, tmp_path, engine, train={"compile": True}, **still)
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)

"""fp16 and its loss scale under every engine: torch's CPU autocast knows fp16, so the engines' own code runs here."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from gptscale.checkpoint.layout import read_manifest, step_dir
from tests.dist.conftest import ENGINES, Done, changed, forked, launch

pytestmark = pytest.mark.dist
LONG = pytest.mark.long  # another way of what the others show

# A number in fp16 is off by up to 2^-11 = 5e-4 of itself, and some of that averages out over a network.
CLOSE = 1e-3


def trained(values: dict[str, Any], folder: Path, engine: str, steps: int, precision: str = "fp16", **env: str) -> Done:
    cfg = changed(
        values,
        folder,
        train={"steps": steps, "precision": precision},
        model={"drop_rate": 0.0},  # fp16 masks are drawn in another order
        optim={"decay_steps": 8},
        sample={"prompts": []},
        eval={"sequences": 4, "train_sequences": None},
        checkpoint={"every_steps": 6},
    )
    launcher = forked(0) if engine == "none" else forked(2)
    done = launch(cfg, launcher, {**ENGINES.get(engine, {}), "FP16_ON_CPU": "1", **env})
    assert done.returncode == 0, done.output
    return done


def loss_scale(done: Done, step: int) -> Any:
    return read_manifest(step_dir(done.cfg.run.dir, step)).ledger["loss_scaler"]


@pytest.fixture(scope="module")
def exact(plain_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Six steps in fp32."""
    return trained(plain_values, tmp_path_factory.mktemp("fp32"), "none", 6, "fp32")


@pytest.mark.parametrize(
    "engine", ["none", "ddp", *(pytest.param(engine, marks=LONG) for engine in ("zero1", "zero2")), "zero3", "fsdp2"]
)
def test_fp16_follows_fp32(plain_values: dict[str, Any], tmp_path: Path, exact: Done, engine: str) -> None:
    done = trained(plain_values, tmp_path, engine, 6)
    for measurement in ("train/loss", "val/loss"):
        assert done.log(measurement) == pytest.approx(exact.log(measurement), rel=CLOSE), measurement
        assert done.log(measurement) != pytest.approx(exact.log(measurement), rel=1e-7), measurement
    # were the gradients still scaled, or scaled twice, the norm would be off by 65536
    assert done.log("train/grad_norm") == pytest.approx(exact.log("train/grad_norm"), rel=10 * CLOSE)
    assert loss_scale(done, 6) == {"scale": 2.0**16, "steps": 6}


@pytest.mark.parametrize(
    ("engine", "then"),
    [
        pytest.param("ddp", "zero1", marks=LONG),
        pytest.param("zero1", "fsdp2", marks=LONG),
        ("zero2", "none"),
        pytest.param("zero3", "ddp", marks=LONG),
        ("fsdp2", "zero3"),
    ],
)
def test_an_overflow_on_one_rank_halves_the_scale_of_all_and_the_next_engine_goes_on_with_it(
    plain_values: dict[str, Any], tmp_path: Path, engine: str, then: str
) -> None:
    # two micro-batches a step, so the fourth is in the second step, which is left out; four good ones follow
    before = trained(plain_values, tmp_path / "before", engine, 6, FAULT="nan:1")
    assert loss_scale(before, 6) == {"scale": 2.0**15, "steps": 4}
    for rank in range(2):
        folder = before.cfg.run.dir.parent
        assert (folder / f"before-nan-{rank}").read_text() == (folder / f"after-nan-{rank}").read_text()

    shutil.copytree(before.cfg.run.dir, tmp_path / "after" / "run")
    after = trained(plain_values, tmp_path / "after", then, 8)
    assert "going on from" in after.output
    assert loss_scale(after, 8) == {"scale": 2.0**15, "steps": 6}

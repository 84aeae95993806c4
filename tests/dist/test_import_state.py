"""A training that Accelerate or DeepSpeed saved goes on as a run of ours."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gptscale.checkpoint.layout import step_dir
from gptscale.config.schema import Config
from gptscale.errors import CheckpointError, TrainingError
from gptscale.training.migrate import import_state
from tests.dist.conftest import ENGINES, Done, changed, forked, launch
from tests.dist.foreign_worker import SAVED_AFTER
from tests.dist.test_crossing import saved_state

pytestmark = pytest.mark.dist

WORKER = str(Path(__file__).with_name("foreign_worker.py"))
STEPS = SAVED_AFTER + 4


def train_and_save(values: dict[str, Any], folder: Path, engine: str, world: int, precision: str, **env: str) -> Done:
    """Train; the folder then holds accelerate/, under ZeRO deepspeed/, and the state that they were made from."""
    cfg = changed(values, folder, train={"steps": STEPS, "precision": precision})
    done = launch(cfg, forked(world), {**ENGINES[engine], "FOREIGN": str(folder), **env}, [WORKER])
    assert done.returncode == 0, done.output
    return done


def imported(cfg: Config, folder: Path, source: Path) -> tuple[Config, Path]:
    moved = cfg.model_copy(update={"run": cfg.run.model_copy(update={"dir": folder / "run"})})
    return moved, import_state(moved, source)


@pytest.mark.parametrize(
    ("engine", "world", "precision"),
    [
        ("ddp", 2, "fp32"),
        ("zero1", 2, "fp32"),
        pytest.param("zero1", 3, "bf16-sharded", marks=pytest.mark.long),
        pytest.param("zero2", 3, "fp32", marks=pytest.mark.long),
        ("zero3", 2, "bf16-sharded"),
        pytest.param("zero3", 3, "fp32", marks=pytest.mark.long),
    ],
)
def test_weights_and_moments_are_the_same_bit_for_bit_and_the_run_goes_on(
    plain_values: dict[str, Any], tmp_path: Path, engine: str, world: int, precision: str
) -> None:
    before = train_and_save(plain_values, tmp_path / "before", engine, world, precision)
    expected = torch.load(tmp_path / "before" / "state.pt", weights_only=True)
    assert len(expected) == 3 * 28
    for kind in ["accelerate"] + ["deepspeed"] * engine.startswith("zero"):
        cfg, path = imported(before.cfg, tmp_path / kind, tmp_path / "before" / kind)
        assert path == step_dir(cfg.run.dir, SAVED_AFTER)
        found = saved_state(path)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    after = launch(cfg, forked(world), ENGINES[engine])
    assert after.returncode == 0, after.output
    assert f"going on from {path}" in after.output
    assert after.log("train/loss") == before.log("train/loss")[SAVED_AFTER:]
    assert after.log("train/grad_norm") == before.log("train/grad_norm")[SAVED_AFTER:]


def test_pickled_weights_serve_as_well(plain_values: dict[str, Any], tmp_path: Path) -> None:
    before = train_and_save(plain_values, tmp_path / "before", "ddp", 2, "fp32", BIN="1")
    assert (tmp_path / "before" / "accelerate" / "pytorch_model.bin").is_file()
    _, path = imported(before.cfg, tmp_path / "after", tmp_path / "before" / "accelerate")
    expected = torch.load(tmp_path / "before" / "state.pt", weights_only=True)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in saved_state(path).items())


def test_a_run_that_has_begun_and_another_optimizer_are_refused(plain_values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="optim.name=muon, but only states of AdamW can be imported"):
        import_state(changed(plain_values, tmp_path, optim={"name": "muon"}), tmp_path)
    cfg = changed(plain_values, tmp_path)
    with pytest.raises(CheckpointError, match="is no folder of Accelerate's save_state"):
        import_state(cfg, tmp_path)
    step_dir(cfg.run.dir, 5).mkdir(parents=True)
    with pytest.raises(TrainingError, match="has checkpoints of its own; import into a new run.dir"):
        import_state(cfg, tmp_path)

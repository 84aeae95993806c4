import shutil
from pathlib import Path
from typing import Any

import pytest

from gptscale.checkpoint import inspection
from gptscale.checkpoint.inspection import inspect_checkpoint
from gptscale.checkpoint.layout import step_dir
from gptscale.config.schema import Config
from gptscale.errors import CheckpointError
from tests.checkpoint.by_hand import FILES, write_checkpoint


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_norms_are_those_of_all_ranges_together(
    tmp_path: Path, cfg: Config, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr("gptscale.weights.files.CHUNK_ELEMENTS", piece)
    found = inspect_checkpoint(write_checkpoint(tmp_path / "step-00000005", config=cfg.model_dump(mode="json")))
    w, b = found.tensors
    # w = 0, 1, .., 5: squares 55; its moments are a tenth; b = 3, -4: norm 5; its moments are twice that
    assert w.norms == {"weight": pytest.approx(55**0.5), "exp_avg": pytest.approx(55**0.5 / 10)}
    assert b.norms == {"weight": pytest.approx(5.0), "exp_avg": pytest.approx(10.0)}
    assert (w.name, w.shape, w.ranges, w.scalars) == ("w", [2, 3], 2, {"step": 5.0})
    assert (b.name, b.shape, b.ranges) == ("b", [2], 1)
    assert (found.step, found.engine, found.world, found.ledger, found.elements) == (5, "ddp", 2, {"step": 5}, 8)
    assert tuple(found.files) == FILES


def test_only_settings_that_differ_from_the_defaults_are_shown(
    tmp_path: Path, values: dict[str, Any], cfg: Config
) -> None:
    folder = write_checkpoint(tmp_path / "step-00000005", config=cfg.model_dump(mode="json"))
    settings = inspect_checkpoint(folder).settings
    assert settings["optim.lr_peak"] == 1e-2
    assert settings["data.source.path"] == values["data"]["source"]["path"]
    assert not {"optim.beta1", "model.qkv_bias", "wandb.mode"} & settings.keys()


def test_a_checkpoint_that_a_training_replaces_while_it_is_inspected_makes_way_for_the_next(
    tmp_path: Path, cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newest = (
        write_checkpoint(step_dir(tmp_path, step), step=step, config=cfg.model_dump(mode="json")) for step in (5, 6)
    )
    real = inspection.open_tensors

    def replaced(path: Path) -> Any:
        shutil.rmtree(newest, ignore_errors=True)
        return real(path)

    monkeypatch.setattr(inspection, "open_tensors", replaced)
    assert inspect_checkpoint(tmp_path).step == 5
    shutil.rmtree(older)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        inspect_checkpoint(tmp_path)

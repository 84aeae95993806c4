import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gptscale.checkpoint import imported, layout, model
from gptscale.checkpoint.imported import write_imported
from gptscale.checkpoint.layout import list_checkpoints, read_manifest, step_dir, write_manifest
from gptscale.checkpoint.model import find_checkpoint, load_model
from gptscale.config.schema import Config
from gptscale.errors import CheckpointAccessError, CheckpointError
from gptscale.model.gpt import GPTModel
from gptscale.training.run import train


def test_a_run_with_a_damaged_newest_checkpoint_gives_the_one_before(
    cfg: Config, caplog: pytest.LogCaptureFixture
) -> None:
    train(cfg)
    newest, older = list_checkpoints(cfg.run.dir)
    expected, _ = load_model(older)
    part = next(newest.glob("part-*"))
    part.write_bytes(part.read_bytes()[:-1])
    found, _ = load_model(cfg.run.dir)
    assert "passing over a bad checkpoint" in caplog.text
    assert all(torch.equal(p, q) for p, q in zip(found.parameters(), expected.parameters(), strict=True))
    assert not found.training
    with pytest.raises(CheckpointError, match="it was cut short or changed"):
        load_model(newest)
    for path in list_checkpoints(cfg.run.dir):
        next(path.glob("part-*")).write_bytes(b"")
    with pytest.raises(CheckpointError, match="it was cut short or changed"):
        load_model(cfg.run.dir)


@pytest.mark.parametrize("code", [errno.EACCES, errno.ESTALE])
def test_a_checkpoint_that_cannot_be_reached_is_not_passed_over(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    train(cfg)

    def failing(path: Path) -> str:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(layout, "fast_hash_file", failing)
    with pytest.raises(CheckpointAccessError, match=f"cannot be read: {os.strerror(code)}"):
        load_model(cfg.run.dir)


@pytest.mark.parametrize("is_link", [True, False])
def test_an_entry_that_is_no_folder_is_passed_over(
    is_link: bool, cfg: Config, caplog: pytest.LogCaptureFixture
) -> None:
    train(cfg)
    newest = list_checkpoints(cfg.run.dir)[0]
    shutil.rmtree(newest)
    if is_link:
        newest.symlink_to("/nowhere")
    else:
        newest.write_text("x")
    load_model(cfg.run.dir)
    assert f"passing over a bad checkpoint: {newest}" in caplog.text


def test_a_path_without_a_checkpoint_is_answered_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist; give a run folder"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("x")
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(CheckpointError, match="holds no checkpoint; give a run folder that `gptscale train`"):
            load_model(path)


def test_imported_weights_come_in_parts_of_a_bounded_size(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imported, "PART_BYTES", 20_000)
    write_imported(tmp_path, cfg, ((name, p.detach()) for name, p in GPTModel(cfg.model, seed=1).named_parameters()))
    manifest = read_manifest(tmp_path)
    held: dict[str, list[int]] = {}
    for record in manifest.parameters.values():
        held.setdefault(record.ranges[0].file, []).append(4 * record.ranges[0].numel)
    assert sum(map(sum, held.values())) > 3 * 20_000
    assert all(sum(sizes) <= 20_000 or len(sizes) == 1 for sizes in held.values())  # one alone may be larger


def test_a_best_that_is_damaged_is_told_and_nothing_is_passed_over(
    cfg: Config, caplog: pytest.LogCaptureFixture
) -> None:
    train(cfg)
    newest, older = list_checkpoints(cfg.run.dir)
    manifest = read_manifest(newest)
    best = {"step": read_manifest(older).step, "val_loss": 1.0}
    write_manifest(newest, replace(manifest, ledger={**manifest.ledger, "best": best}))
    next(older.glob("part-*")).write_bytes(b"")
    with pytest.raises(CheckpointError, match="it was cut short or changed"):
        find_checkpoint(cfg.run.dir, best=True)
    assert caplog.text == ""


def test_imported_weights_have_no_best_and_say_so(cfg: Config) -> None:
    folder = step_dir(cfg.run.dir, 0)
    folder.mkdir(parents=True)
    write_imported(folder, cfg, ((name, p.detach()) for name, p in GPTModel(cfg.model, seed=1).named_parameters()))
    with pytest.raises(CheckpointError, match="step-00000000 knows of no best checkpoint: none was evaluated"):
        find_checkpoint(cfg.run.dir, best=True)


def test_a_checkpoint_that_lacks_a_parameter_is_told(cfg: Config) -> None:
    train(cfg)
    newest = list_checkpoints(cfg.run.dir)[0]
    manifest = read_manifest(newest)
    fewer = {name: record for name, record in manifest.parameters.items() if name != "final_norm.weight"}
    write_manifest(newest, replace(manifest, parameters=fewer))
    with pytest.raises(CheckpointError, match="does not fit model: final_norm.weight is only in the model"):
        load_model(newest)


@pytest.mark.parametrize("reading", ["verified", "stored_tensors"])
def test_a_checkpoint_that_a_training_replaces_while_it_is_read_makes_way_for_the_next(
    reading: str, cfg: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train(cfg)
    newest, older = list_checkpoints(cfg.run.dir)
    expected, _ = load_model(older)
    real = getattr(model, reading)

    def replaced(path: Path, *args: Any) -> Any:
        shutil.rmtree(newest, ignore_errors=True)
        return real(path, *args)

    monkeypatch.setattr(model, reading, replaced)
    found, _ = load_model(cfg.run.dir)
    assert all(torch.equal(p, q) for p, q in zip(found.parameters(), expected.parameters(), strict=True))
    assert caplog.text == ""
    shutil.rmtree(older)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_model(cfg.run.dir)

"""Where a run goes on that was imported from another program's saved training."""

from pathlib import Path
from typing import Any

import pytest

from gptscale.checkpoint.layout import read_manifest
from gptscale.config.load import parse_config
from gptscale.training.migrate import import_state
from tests.weights.test_saved_state import save_state, trained


def test_an_imported_run_goes_on_with_the_samples_and_the_rate_of_its_step(
    values: dict[str, Any], tmp_path: Path
) -> None:
    values["model"] |= {"emb_dim": 8, "n_layers": 1}
    values["optim"] |= {"lr_peak": 1e-2, "warmup_steps": 4}
    cfg = parse_config(values)
    (tmp_path / "theirs").mkdir()
    source = save_state(tmp_path / "theirs", *trained(cfg=cfg.model))
    manifest = read_manifest(import_state(cfg, source))
    # two updates, of 8 sequences each; the rate of the second is two fifths of the peak
    assert manifest.step == 2
    assert (manifest.ledger["step"], manifest.ledger["samples"]) == (2, 16)
    assert manifest.ledger["lr"] == pytest.approx(4e-3)
    assert manifest.ledger["segments"] == [{"step": 0, "samples": 0, "tokens_per_step": 256}]


def test_a_machine_that_could_not_train_the_model_imports_it(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptscale.training.micro_batch.free_bytes", lambda device: 0)
    values["model"] |= {"emb_dim": 8, "n_layers": 1}
    values["train"]["micro_batch_sequences"] = "auto"
    cfg = parse_config(values)
    (tmp_path / "theirs").mkdir()
    assert import_state(cfg, save_state(tmp_path / "theirs", *trained(cfg=cfg.model))).name == "step-00000002"

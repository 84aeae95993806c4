"""Named validation sets, while a run trains and afterwards."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptscale.checkpoint import layout
from gptscale.checkpoint.layout import list_checkpoints, read_manifest, step_dir, write_manifest
from gptscale.cli.evaluate import evaluate
from gptscale.cli.export import run_export
from gptscale.cli.import_weights import run_import
from gptscale.cli.main import main
from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.data.manifest import load_manifest
from gptscale.data.prepare import prepare
from gptscale.errors import CheckpointError, ConfigError, DataError
from gptscale.tracking.jsonl import read_log
from gptscale.training.run import train

pytestmark = pytest.mark.e2e


@pytest.fixture
def trained(values: dict[str, Any], tmp_path: Path) -> Config:
    """A run with two more validation sets, one of them without a split of its own."""
    for name, fraction in (("other", 0.5), ("whole", 0.0)):
        (tmp_path / f"{name}.txt").write_text("a dog sat on the old green house and saw some cat " * 40)
        source = {"dir": str(tmp_path / name), "source": {"path": str(tmp_path / f"{name}.txt")}}
        prepare(
            parse_config({**values, "data": {**values["data"], **source, "validation_fraction": fraction}}),
            say=lambda line: None,
        )
    values["eval"] |= {"every_steps": 2, "sets": {name: str(tmp_path / name) for name in ("other", "whole")}}
    values["checkpoint"] = {"every_steps": 2, "keep": None}
    values["sample"]["prompts"] = []
    cfg = parse_config({**values, "train": {**values["train"], "steps": 6}})
    train(cfg)
    return cfg


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: object) -> Any:
    """What `gptscale evaluate ... --json` prints."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["gptscale", "evaluate", *map(str, args), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    return json.loads(capsys.readouterr().out)


def test_named_sets_are_in_the_record_and_the_verb_finds_the_same(
    trained: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    last = [r for r in read_log(trained.run.dir / "log.jsonl") if "val/loss" in r][-1]
    found = printed(capsys, monkeypatch, trained.run.dir, "--set", "all", "--sequences", 16)
    assert found["step"] == last["step"] == 6
    assert list(found["results"]) == ["val", "other", "whole"]
    for name, place in (("val", "val"), ("other", "val/other"), ("whole", "val/whole")):
        for figure in ("loss", "perplexity", "bits_per_byte"):
            assert found["results"][name][figure] == last[f"{place}/{figure}"]
        assert len(found["results"][name]["loss_by_position"]) == 32


def test_the_best_checkpoint_can_be_asked_for(trained: Config) -> None:
    best = read_manifest(list_checkpoints(trained.run.dir)[0]).ledger["best"]
    assert evaluate(trained.run.dir, best=True, sequences=16).loss == best["val_loss"]
    assert evaluate(step_dir(trained.run.dir, 2), sequences=16).loss != best["val_loss"]
    with pytest.raises(
        CheckpointError, match=r"step-00000002 is one checkpoint, and --best chooses .*; give the run f"
    ):
        evaluate(step_dir(trained.run.dir, 2), best=True)


@pytest.mark.parametrize(
    ("best", "message"),
    [
        (
            {"step": 3, "val_loss": 1.0},
            r"step-00000003, the best by validation loss, is gone; checkpoint\.keep_best=true",
        ),
        (None, r"knows of no best checkpoint: none was evaluated at its very step; let checkpoint\.every_steps"),
    ],
)
def test_a_best_checkpoint_that_is_not_there_is_told(trained: Config, best: Any, message: str) -> None:
    newest = list_checkpoints(trained.run.dir)[0]
    manifest = read_manifest(newest)
    write_manifest(newest, replace(manifest, ledger={**manifest.ledger, "best": best}))
    with pytest.raises(CheckpointError, match=message):
        evaluate(trained.run.dir, best=True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"stride": 33}, r"--stride=33 would pass over tokens: the model sees 32; take that or less"),
        ({"stride": 0}, r"--stride=0 is no number of them; give 1 or more, or leave it out"),
        ({"sequences": 0}, r"--sequences=0 is no number of them; give 1 or more, or leave it out"),
        ({"split": "test"}, r"--split=test is neither val nor train"),
        ({"data_dir": "WHOLE"}, r"its val split holds 0 tokens"),
    ],
)
def test_what_cannot_be_evaluated_is_told(trained: Config, args: dict[str, Any], message: str) -> None:
    if "data_dir" in args:
        args = {"data_dir": trained.eval.sets["whole"]}
    with pytest.raises((ConfigError, DataError), match=message):
        evaluate(trained.run.dir, **args)


def test_a_text_shorter_than_a_window_is_evaluated_by_sliding_ones(
    trained: Config, values: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("a dog sat on a mat and saw")
    source = {"dir": str(tmp_path / "short"), "source": {"path": str(tmp_path / "short.txt")}}
    data = {**values["data"], **source, "validation_fraction": 0.5}
    prepare(parse_config({**values, "data": data}), say=lambda line: None)
    with pytest.raises(DataError, match=r"its val split holds 14 tokens, and one window of model.context_length=32"):
        evaluate(trained.run.dir, data_dir=tmp_path / "short")
    assert evaluate(trained.run.dir, data_dir=tmp_path / "short", stride=8).tokens == 13


def test_cloze_and_strides_are_part_of_the_json(
    trained: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "q.jsonl").write_text('{"context": "the cat", "endings": ["sat", "qqq"], "label": 0}\n' * 3)
    found = printed(capsys, monkeypatch, trained.run.dir, "--cloze", tmp_path / "q.jsonl", "--stride", 8)
    assert found["results"]["cloze"]["acc"] == 1.0  # the model has seen "sat", and no q ever
    assert found["results"]["cloze"]["questions"] == 3
    assert found["results"]["val"]["tokens"] == len(_validation(trained)) - 1


def test_cloze_alone_needs_no_corpus_and_all_else_says_to_name_one(
    trained: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "q.jsonl").write_text('{"context": "the cat", "endings": ["sat", "qqq"], "label": 0}\n' * 3)
    run_export(trained.run.dir, tmp_path / "exported")
    run_import(str(tmp_path / "exported"), to=tmp_path / "back", overrides=["data.tokenizer=bytes"])
    found = printed(capsys, monkeypatch, tmp_path / "back", "--cloze", tmp_path / "q.jsonl")
    assert list(found["results"]) == ["cloze"]
    assert found["results"]["cloze"]["acc"] == 1.0
    with pytest.raises(ConfigError, match=r"back is imported and has no corpus of its own; choose one with --data-dir"):
        evaluate(tmp_path / "back")


def test_a_checkpoint_is_read_through_once_before_its_weights(trained: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    hash_file = layout.fast_hash_file

    def counted(path: Path) -> str:
        hashed.append(path)
        return hash_file(path)

    monkeypatch.setattr(layout, "fast_hash_file", counted)
    evaluate(trained.run.dir, sequences=1)
    assert len(hashed) == 1


def _validation(cfg: Config) -> Any:
    from gptscale.data.corpus import open_corpus

    return open_corpus(cfg.data.dir).val


def test_a_named_set_of_another_tokenizer_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "corpus", other)
    manifest = load_manifest(other)
    tokenizer = {**manifest.settings.tokenizer, "ranks_sha256": "0" * 64}
    settings = manifest.settings.model_copy(update={"tokenizer": tokenizer})
    manifest.model_copy(update={"settings": settings}).save(other)
    values["eval"]["sets"] = {"other": str(other)}
    with pytest.raises(DataError, match=rf"^{other} was made with other ranks of tokenizer bytes"):
        train(parse_config(values))


def test_the_training_windows_of_a_record_are_training_text(values: dict[str, Any]) -> None:
    values["train"]["steps"], values["sample"]["prompts"] = 4, []
    cfg = parse_config(values)
    assert train(cfg)
    last = [r for r in read_log(cfg.run.dir / "log.jsonl") if "eval_train/loss" in r][-1]
    assert last["eval_train/loss"] == evaluate(cfg.run.dir, split="train", sequences=8).loss
    assert last["val/loss"] == evaluate(cfg.run.dir, split="val", sequences=16).loss

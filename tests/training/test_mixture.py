"""Training on a mixture: each corpus has its loss and its epochs in the log, and a resume goes on with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from gptscale.cli.evaluate import evaluate, run_evaluate
from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.data.prepare import prepare
from gptscale.errors import CheckpointError
from gptscale.tracking.jsonl import read_log
from gptscale.tracking.lines import evaluated_sets
from gptscale.training.run import train
from tests.conftest import small_text, small_values


def mixture(folder: Path, weights: tuple[int, int], **train: Any) -> Config:
    values = small_values(folder)
    dirs = [folder / "words", folder / "letters"]
    values["data"] = {
        "tokenizer": "bytes",
        "mixture": [{"dir": str(d), "weight": w} for d, w in zip(dirs, weights, strict=True)],
    }
    values["train"] |= {"steps": 10, **train}
    return parse_config(values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in [("words", small_text(400)), ("letters", "abcdefgh " * 600)]:
        (tmp_path / f"{name}.txt").write_text(text)
        values = small_values(tmp_path)
        values["data"] |= {"dir": str(tmp_path / name), "source": {"path": str(tmp_path / f"{name}.txt")}}
        prepare(parse_config(values), say=lambda line: None)
    return tmp_path


def test_a_run_on_a_mixture_reports_each_corpus_and_resumes(folder: Path) -> None:
    assert train(mixture(folder, (3, 1)))
    assert train(mixture(folder, (3, 1), steps=12))
    last = [r for r in read_log(folder / "run" / "log.jsonl") if "val/loss" in r][-1]
    assert last["step"] == 12
    assert last["val/letters/loss"] != last["val/words/loss"]
    assert last["val/loss"] == pytest.approx((3 * last["val/words/loss"] + last["val/letters/loss"]) / 4, rel=1e-6)
    assert evaluated_sets(last) == ["words", "letters"]  # for the console and the report
    # 12 steps of 8 samples: 72 and 24, of 32 tokens each
    letters = (1 + int(5400 * 0.9) - 1) // 32
    assert last["epoch/letters"] == pytest.approx(24 / letters)


def test_other_weights_are_another_run(folder: Path) -> None:
    assert train(mixture(folder, (3, 1)))
    with pytest.raises(CheckpointError, match="was trained on data"):
        train(mixture(folder, (1, 1), steps=12))


def test_a_mixtures_checkpoint_is_evaluated_as_in_training_and_on_a_corpus_that_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(mixture(folder, (3, 1)))
    last = [r for r in read_log(folder / "run" / "log.jsonl") if "val/loss" in r][-1]
    capsys.readouterr()
    run_evaluate(folder / "run", sets=["all"], sequences=16, as_json=True)  # as eval.sequences
    results = json.loads(capsys.readouterr().out)["results"]
    assert {f"{name}/loss": found["loss"] for name, found in results.items()} == {
        key: value for key, value in last.items() if key.startswith("val/") and key.endswith("/loss")
    }
    assert evaluate(folder / "run", sequences=16).loss == last["val/loss"]
    assert evaluate(folder / "run", data_dir=folder / "letters").tokens > 0

"""The options of prepare and adopt."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from gptscale.cli.adopt import run_adopt
from gptscale.cli.prepare import run_prepare
from gptscale.data.corpus import open_corpus
from gptscale.data.manifest import load_manifest
from gptscale.errors import ConfigError
from tests.conftest import small_text, small_values


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(small_text(50))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_values(tmp_path)))
    return path


def test_tasks_and_then_finish_make_the_corpus_that_one_call_makes(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_prepare(config)
    whole = load_manifest(tmp_path / "corpus")
    elsewhere = [f"data.dir={tmp_path / 'tasks'}"]
    for task in (1, 0):
        run_prepare(config, elsewhere, task=task, tasks=2)
    assert "task 0 of 2: 1 of 1 units are there; --finish after the last task" in capsys.readouterr().out
    run_prepare(config, elsewhere, finish=True)
    assert load_manifest(tmp_path / "tasks") == whole


@pytest.mark.parametrize("options", [{"task": 1}, {"tasks": 2}, {"task": 0, "tasks": 2, "finish": True}])
def test_options_that_do_not_go_together_are_refused(config: Path, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="give --task and --tasks together, and --finish alone, after the last task"):
        run_prepare(config, **options)


def test_adopt_makes_a_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.bin", "b.bin"):
        np.arange(100, dtype="<u2").tofile(tmp_path / name)
    run_adopt(tmp_path / "corpus", [str(tmp_path / "a.bin")], [str(tmp_path / "b.bin")], "bytes")
    assert "train: a.bin, nanoGPT (uint16 without a header): 100 tokens" in capsys.readouterr().out
    assert len(open_corpus(tmp_path / "corpus").train) == 100

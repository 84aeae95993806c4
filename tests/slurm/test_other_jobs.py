"""The jobs around a training: preparing its corpus, evaluating its checkpoint."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptscale.config.load import dump_config, parse_config
from gptscale.config.schema import Config
from gptscale.data.prepare import prepare
from tests.slurm.conftest import ROOT, Job, await_, command, facts, power_off, settings

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

UNITS, TASKS = 40, 4


@pytest.fixture
def cfg(values: dict[str, Any], tmp_path: Path) -> Config:
    """A corpus of 40 units that takes its tasks seconds, with tiktoken alone."""
    lines = [f"line {i} of {' '.join(str(i * j) for j in range(600))}" for i in range(UNITS * 100)]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    source = {"path": str(tmp_path / "lines.txt"), "documents": "line"}
    data = {"dir": str(tmp_path / "corpus"), "source": source, "documents_per_shard": 100, "split": "hash"}
    data |= {"tokenizer": "gpt2", "tokenizer_engine": "tiktoken", "validation_fraction": 0.1}
    cfg = parse_config({**values, "model": {**values["model"], "vocab_size": 50257}, "data": data})
    (tmp_path / "config.yaml").write_text(dump_config(cfg))
    return cfg


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def submit_array(folder: Path) -> list[str]:
    """Prepare with an array of four; the numbers of the array and of the job after it."""
    if not (folder / "launch").exists():
        (folder / "launch").symlink_to(ROOT / "launch")  # what the jobs print lands beside it
    environment = settings(TASKS=str(TASKS), CPUS="4")  # a node each
    said = command("on-ctl", "launch/slurm/prepare.sbatch", "config.yaml", cwd=folder, env=environment)
    found = re.fullmatch(r"array (\d+), then (\d+) for the manifest\n", said)
    assert found, said
    return [*found.groups()]


def state(job: str) -> str:
    return facts(job)["JobState"]


def units_of(task: int, cfg: Config) -> list[bool]:
    """Which units of a task are finished."""
    return [(cfg.data.folder / f"unit-{unit:05d}.json").exists() for unit in range(task, UNITS, TASKS)]


@pytest.fixture
def whole(cfg: Config, tmp_path: Path) -> dict[str, bytes]:
    """The files of a preparation without a cluster."""
    elsewhere = cfg.model_copy(update={"data": cfg.data.model_copy(update={"dir": tmp_path / "whole"})})
    prepare(elsewhere, lambda line: None)
    return contents(tmp_path / "whole")


def test_an_array_with_a_killed_task_makes_the_same_corpus_to_the_byte(
    cfg: Config, whole: dict[str, bytes], tmp_path: Path
) -> None:
    array, finish = submit_array(tmp_path)
    await_(lambda: any(units_of(2, cfg)), lambda: said(tmp_path))
    node = facts(f"{array}_2")["NodeList"]
    command("on-node", node, "pkill", "-KILL", "-f", "[-]-task 2 ")
    await_(lambda: state(finish) == "CANCELLED", lambda: said(tmp_path))
    assert [state(f"{array}_{task}") for task in range(TASKS)] == ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"]
    assert not all(units_of(2, cfg))
    assert not (cfg.data.folder / "manifest.json").exists()
    _, finish = submit_array(tmp_path)
    await_(lambda: state(finish) == "COMPLETED", lambda: said(tmp_path))
    assert contents(cfg.data.folder) == whole


def test_an_array_that_loses_a_node_makes_the_same_corpus_by_itself(
    cfg: Config, whole: dict[str, bytes], tmp_path: Path
) -> None:
    array, finish = submit_array(tmp_path)
    await_(lambda: any(units_of(2, cfg)), lambda: said(tmp_path))
    power_off(facts(f"{array}_2")["NodeList"])
    assert not all(units_of(2, cfg))
    await_(lambda: state(finish) == "COMPLETED", lambda: said(tmp_path))
    assert facts(f"{array}_2")["Restarts"] == "1"
    assert contents(cfg.data.folder) == whole


def said(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.out")))


def test_an_evaluation_says_what_it_says_without_slurm(undisturbed: Job, tmp_path: Path) -> None:
    output = tmp_path / "evaluation.txt"
    words = [str(undisturbed.cfg.run.dir), "--json"]
    submitted = ["sbatch", "--parsable", f"--output={output}", "launch/slurm/evaluate.sbatch", *words]
    number = command(*submitted, cwd=ROOT, env=settings()).strip()
    await_(lambda: state(number) == "COMPLETED", output.read_text)
    here = [sys.executable, "-m", "gptscale", "evaluate", *words]
    done = subprocess.run(here, capture_output=True, text=True, env=settings(), check=True)
    assert json.loads(output.read_text()) == json.loads(done.stdout)

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptscale.checkpoint.layout import read_manifest, step_dir
from gptscale.checkpoint.retention import doomed
from gptscale.config.load import parse_config
from gptscale.config.schema import CheckpointConfig, Config
from gptscale.planning.checkpoints import checkpoint_bytes, kept_checkpoints, plan_checkpoints
from gptscale.training.run import train

Make = Callable[..., Config]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_has_the_planned_size(values: dict[str, Any], tmp_path: Path, optimizer: str) -> None:
    sections = {"train": {**values["train"], "steps": 2}, "optim": {**values["optim"], "name": optimizer}}
    quiet = {"sample": {"prompts": []}, "eval": {"sequences": 1, "train_sequences": None, "every_steps": None}}
    cfg = parse_config({**values, **sections, **quiet})
    assert train(cfg)
    written = sum(record.bytes for record in read_manifest(step_dir(tmp_path / "run", 2)).files.values())
    header = 12_000  # names and shapes, which do not grow with the model's width
    assert checkpoint_bytes(cfg) <= written <= checkpoint_bytes(cfg) + header
    assert checkpoint_bytes(cfg) > 20 * header


@pytest.mark.parametrize("keep", [1, 3, None])
@pytest.mark.parametrize("every", [7, 10, 100, None])
@pytest.mark.parametrize("milestone", [20, None])
def test_as_many_stay_as_the_store_keeps(keep: int | None, every: int | None, milestone: int | None) -> None:
    rules = CheckpointConfig(every_steps=every, keep=keep, keep_every_steps=milestone, keep_best=False)
    kept: list[int] = []
    for step in range(1, 96):  # as the store does it: one comes, then the doomed go
        if step == 95 or (every and step % every == 0):
            kept.append(step)
            gone = doomed(rules, kept, None)
            kept = [s for s in kept if s not in gone]
    assert kept_checkpoints(rules, 95) == len(kept)


def test_the_best_is_one_more_if_there_are_as_many() -> None:
    assert kept_checkpoints(CheckpointConfig(every_steps=10, keep=3), 100) == 4
    assert kept_checkpoints(CheckpointConfig(every_steps=None, keep=3), 100) == 1
    assert kept_checkpoints(CheckpointConfig(every_steps=10, keep=3), None) == 4


@pytest.mark.parametrize(
    ("rules", "steps", "at_least"),
    [
        ({"keep": 3}, None, False),
        ({"keep": None}, None, True),
        ({"keep": 3, "keep_every_steps": 100}, None, True),
        ({"keep": None, "keep_every_steps": 100}, 1000, False),
    ],
)
def test_of_a_run_of_unknown_length_more_may_stay(
    config: Make, rules: dict[str, Any], steps: int | None, at_least: bool
) -> None:
    assert plan_checkpoints(config(checkpoint=rules), steps, 1e9).at_least is at_least


def test_disk_has_room_for_the_kept_ones_and_the_next(config: Make) -> None:
    cfg = config(checkpoint={"every_steps": 5, "keep": 2, "keep_best": False})
    plan = plan_checkpoints(cfg, 20, disk_bytes_per_s=1e6)
    # 34,720 parameters (test_initial.py) and 63 rows of padding of width 32: 12 bytes each
    assert plan.bytes_each == 12 * (34_720 + 63 * 32)
    assert plan.disk_bytes == 3 * plan.bytes_each
    assert plan.save_s == plan.bytes_each / 1e6

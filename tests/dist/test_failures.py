"""A failure on one rank ends all of them, soon, with one message."""

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dist.conftest import ENGINES, changed, forked, launch, torchrun

pytestmark = pytest.mark.dist


@pytest.mark.parametrize(
    ("fault", "engine", "message"),
    [
        ("loader:1", "ddp", "gptscale: rank 1 failed with OSError: the disk is gone"),
        ("oom:0", "ddp", "gptscale: rank 0 ran out of memory: tried to allocate 3 GiB; lower train.micro_batch"),
        pytest.param(
            "oom:1", "zero2", "rank 1 ran out of memory: tried to allocate 3 GiB; lower", marks=pytest.mark.long
        ),
        (
            "hang:1",
            "ddp",
            f"; no word from rank 1 on {socket.gethostname()}; if one of them was only slow, raise GPTSCALE_COLLECTIVE_TIMEOUT_S=5, the seconds that a rank waits",
        ),
    ],
)
def test_a_fault_of_one_rank_is_told_once_and_ends_the_job(
    plain_values: dict[str, Any], tmp_path: Path, fault: str, engine: str, message: str
) -> None:
    cfg = changed(plain_values, tmp_path, sample={"prompts": []}, eval={"sequences": 1, "train_sequences": None})
    done = launch(cfg, torchrun(2), {**ENGINES[engine], "FAULT": fault, "GPTSCALE_COLLECTIVE_TIMEOUT_S": "5"})
    assert done.returncode != 0
    assert message in done.output, done.output
    assert done.output.count("gptscale: ") == 1, done.output


def test_a_launch_that_one_machine_lacks_a_file_of_is_told_once(plain_values: dict[str, Any], tmp_path: Path) -> None:
    env = {**ENGINES["zero1"], "FAULT": "launch:1", "GPTSCALE_COLLECTIVE_TIMEOUT_S": "5"}
    done = launch(changed(plain_values, tmp_path), forked(2), env)
    assert done.returncode != 0
    assert "gptscale: the launch's deepspeed_config_file=/nowhere.json cannot be read" in done.output, done.output
    assert done.output.count("gptscale: ") == 1, done.output


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]).returncode:
        pytest.skip("needs root, to mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("gone:0", "was deleted or moved while this run was writing it; move it back and start the same command again"),
        ("full:0", "log.jsonl: No space left on device; free space or mend the permissions of that folder"),
    ],
)
def test_a_run_that_loses_its_disk_says_so_once(
    plain_values: dict[str, Any], small_disk: Path, fault: str, message: str
) -> None:
    quiet: dict[str, Any] = {"sample": {"prompts": []}, "eval": {"sequences": 1, "train_sequences": None}}
    cfg = changed(plain_values, small_disk, **quiet)
    done = launch(cfg, forked(2), {"FAULT": fault, "RUN_DIR": str(cfg.run.dir)})
    assert done.returncode != 0
    assert message in done.output, done.output
    assert done.output.count("gptscale: ") == 1, done.output
    assert not (cfg.run.dir / "done").exists()


@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero3", marks=pytest.mark.long)])
def test_a_part_that_one_rank_cannot_write_ends_all_at_the_next_step_with_its_cause(
    plain_values: dict[str, Any], tmp_path: Path, engine: str
) -> None:
    cfg = changed(plain_values, tmp_path, sample={"prompts": []}, eval={"sequences": 1}, checkpoint={"every_steps": 4})
    done = launch(cfg, forked(2), {**ENGINES[engine], "FAULT": "writer:1"})
    assert done.returncode != 0
    cause = (
        r"gptscale: checkpoint \S*/step-00000004 could not be written: \[Errno 5\] Input/output error; older checkpoi"
    )
    assert len(re.findall(cause, done.output)) == done.output.count("gptscale: ") == 1, done.output
    assert 4 <= len(done.log("train/loss")) <= 6, (
        "the step after the save tells, or the one after it: not the last of 50"
    )
    assert list((cfg.run.dir / "checkpoints").iterdir()) == []

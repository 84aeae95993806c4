"""The quickest of these tests, which `make test` runs too: a job that is told of its end, and comes back."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptscale.config.load import dump_config
from gptscale.tracking.jsonl import read_log
from tests.slurm.conftest import OFFLINE, Job, command, settings, submit

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]


def losses_alone(job: Job, folder: Path) -> list[float]:
    """The losses of the same run in one process without SLURM."""
    cfg = job.cfg.model_copy(update={"run": job.cfg.run.model_copy(update={"dir": folder / "run"})})
    (folder / "config.yaml").write_text(dump_config(cfg))
    train = [sys.executable, "-m", "gptscale", "train", str(folder / "config.yaml"), "wandb.mode=disabled"]
    subprocess.run(train, check=True, capture_output=True, env=settings())
    return [record["train/loss"] for record in read_log(cfg.run.dir / "log.jsonl") if "train/loss" in record]


def test_a_job_that_is_told_of_its_end_goes_on_in_the_same_log_and_wandb_run(
    values: dict[str, Any], tmp_path: Path
) -> None:
    job = submit({**values, "wandb": OFFLINE}, tmp_path / "job", steps=40)
    job.await_checkpoint()
    wandb_id = job.wandb_id
    command("scancel", "--batch", "--signal=USR1", job.number)
    job.await_done()
    assert (job.facts["Restarts"], job.starts) == ("1", 2)
    assert job.steps() == list(range(1, 41))
    (tmp_path / "alone").mkdir()
    assert job.losses() == pytest.approx(losses_alone(job, tmp_path / "alone"), rel=1e-5)
    assert job.wandb_id == wandb_id
    job.assert_wandb_has_the_log()

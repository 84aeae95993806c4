"""A failure on one rank ends all of them, soon, with one message."""

from pathlib import Path
from typing import Any

import pytest

from tests.dist.conftest import ENGINES, changed, launch, torchrun

pytestmark = pytest.mark.dist


@pytest.mark.parametrize(
    ("fault", "engine", "message"),
    [
        ("loader:1", "ddp", "gptscale: rank 1 failed with OSError: the disk is gone"),
        ("oom:0", "ddp", "gptscale: rank 0 ran out of memory: tried to allocate 3 GiB; lower train.micro_batch"),
        ("oom:1", "zero2", "gptscale: rank 1 ran out of memory: tried to allocate 3 GiB; lower train.micro_batch"),
        ("hang:1", "ddp", "raise GPTSCALE_COLLECTIVE_TIMEOUT_S=5, the seconds that a rank waits"),
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

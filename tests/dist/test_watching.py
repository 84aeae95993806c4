"""Who speaks for several ranks."""

from pathlib import Path
from typing import Any

import pytest

from tests.dist.conftest import changed, forked, launch
from tests.e2e.test_wandb import merged_log, read_back

pytestmark = pytest.mark.dist


def test_of_two_ranks_the_first_alone_speaks(plain_values: dict[str, Any], tmp_path: Path) -> None:
    values = {**plain_values, "wandb": {}}
    wandb = {"mode": "offline", "checkpoints": "reference"}
    cfg = changed(values, tmp_path, train={"steps": 3}, optim={"warmup_steps": 1}, wandb=wandb)
    env = {"HOME": str(tmp_path / "home"), "HTTPS_PROXY": "http://127.0.0.1:9"}  # nobody listens there
    done = launch(cfg, forked(2), env)
    assert done.returncode == 0, done.output
    (path,) = (cfg.run.dir / "wandb").rglob("*.wandb")
    _, rows = read_back(path)
    assert [row["_step"] for row in rows] == [record["step"] for record in merged_log(cfg.run.dir)] == [0, 1, 2, 3]
    assert done.output.count("step 2/3  loss") == 1
    assert done.output.count("model: 34,720 parameters") == 1

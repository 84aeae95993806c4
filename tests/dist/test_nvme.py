"""ZeRO-3 with its optimizer state on a disk: the same run, and checkpoints that go anywhere."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from gptscale.checkpoint.layout import step_dir
from gptscale.runtime.zero_config import can_swap
from tests.dist.conftest import ENGINES, Done, changed, forked, launch
from tests.dist.test_crossing import saved_state
from tests.dist.worker import state_hash

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module", autouse=True)
def _async_io() -> None:
    """What reads and writes the disk is built once here, since it takes longer than a test may."""
    if not can_swap():
        pytest.skip("needs a C++ compiler, ninja and libaio's headers, from which DeepSpeed builds async_io")
    from deepspeed.ops.op_builder import AsyncIOBuilder

    AsyncIOBuilder().load(verbose=False)


def trained(values: dict[str, Any], folder: Path, engine: str, steps: int, optimizer: str = "adamw") -> Done:
    """A model whose matrices are more than the mebibyte on each rank that DeepSpeed takes to the disk."""
    cfg = changed(
        values,
        folder,
        model={"emb_dim": 160, "n_heads": 4, "n_layers": 4},
        train={"steps": steps},
        optim={"decay_steps": 6, "warmup_steps": 1, "name": optimizer},
        sample={"prompts": []},
        eval={"sequences": 4, "train_sequences": None},
        checkpoint={"every_steps": 2},
    )
    (folder / "disk").mkdir(parents=True)
    nvme = {
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "nvme",
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH": str(folder / "disk"),
    }
    env = {**ENGINES["zero3"], **nvme} if engine == "nvme" else ENGINES.get(engine, {})
    done = launch(cfg, forked(0) if engine == "none" else forked(2), env)
    assert done.returncode == 0, done.output
    return done


@pytest.mark.parametrize(("optimizer", "rel"), [("adamw", 1e-5), ("muon", 5e-4)])
def test_a_run_goes_to_the_disk_and_back(
    plain_values: dict[str, Any], tmp_path: Path, optimizer: str, rel: float
) -> None:
    whole = trained(plain_values, tmp_path / "whole", "none", 6, optimizer)
    before = trained(plain_values, tmp_path / "2", "nvme", 2, optimizer)
    state = "exp_avg_sq" if optimizer == "adamw" else "momentum_buffer"
    assert any(name.startswith(state) for name in before.watched["on_disk"])
    assert list((tmp_path / "2" / "disk").iterdir()) == []
    for steps, engine in ((4, "none"), (6, "nvme")):
        shutil.copytree(before.cfg.run.dir, tmp_path / str(steps) / "run")
        last = step_dir(before.cfg.run.dir, steps - 2)
        before = trained(plain_values, tmp_path / str(steps), engine, steps, optimizer)
        assert before.watched["start"] == state_hash(saved_state(last)), engine
    for measurement in ("train/loss", "train/grad_norm"):
        assert before.log(measurement) == pytest.approx(whole.log(measurement), rel=rel)

"""Steps that go wrong on one rank of two: what is skipped, what is recorded, what is rolled back."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gptscale.checkpoint.layout import list_checkpoints, read_manifest
from gptscale.checkpoint.model import load_model
from tests.dist.conftest import ENGINES, changed, forked, launch

pytestmark = pytest.mark.dist
LONG = pytest.mark.long  # another way of what the others show
QUICK = {"sample": {"prompts": []}, "eval": {"sequences": 1, "train_sequences": None}}


@pytest.mark.parametrize(
    ("rank", "engine"),
    [(1, "ddp"), pytest.param(0, "zero2", marks=LONG), (1, "zero3"), pytest.param(0, "fsdp2", marks=LONG)],
)
def test_a_nan_at_step_20_on_one_rank_is_skipped_by_all_and_recorded(
    plain_values: dict[str, Any], tmp_path: Path, rank: int, engine: str
) -> None:
    cfg = changed(plain_values, tmp_path, **QUICK, train={"steps": 24}, checkpoint={"every_steps": 20})
    # two micro-batches a step on a rank: the 40th backward is the last of step 20
    env = {**ENGINES[engine], "FAULT": f"nan:{rank}", "FAULTY_CALL": "40"}
    done = launch(cfg, forked(2), env)
    assert done.returncode == 0, done.output
    assert done.log("health/skipped_steps") == [0] * 19 + [1] + [0] * 4
    assert done.log("train/loss")[19] is None
    assert "step 20/24  1 steps skipped, whose gradients were not finite" in done.output
    model, _ = load_model(cfg.run.dir)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    steps = [read_manifest(path).step for path in list_checkpoints(cfg.run.dir)]
    assert steps == [24, 21]  # step 20 was no time for a checkpoint, which came with the next


@pytest.mark.parametrize(
    ("engine", "precision", "offload"),
    [
        *(pytest.param(engine, "fp32", "none", marks=LONG) for engine in ("ddp", "zero2")),
        ("zero3", "fp32", "none"),
        ("zero2", "bf16-sharded", "cpu"),
        pytest.param("zero1", "bf16-sharded", "cpu", marks=LONG),
    ],
)
def test_a_skipped_step_leaves_weights_and_moments_alone(
    plain_values: dict[str, Any], tmp_path: Path, engine: str, precision: str, offload: str
) -> None:
    cfg = changed(plain_values, tmp_path, **QUICK, train={"steps": 6, "precision": precision})
    offloaded = {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": offload}
    done = launch(cfg, forked(2), {**ENGINES[engine], **offloaded, "FAULT": "nan:1"})
    assert done.returncode == 0, done.output
    assert done.log("health/skipped_steps") == [0, 1, 0, 0, 0, 0]
    for rank in range(2):
        assert (tmp_path / f"before-nan-{rank}").read_text() == (tmp_path / f"after-nan-{rank}").read_text()


@pytest.mark.parametrize(
    "engine", [*(pytest.param(engine, marks=LONG) for engine in ("ddp", "zero1", "fsdp2")), "zero3"]
)
def test_a_spike_on_one_rank_sends_both_back_and_leaves_its_samples_out(
    plain_values: dict[str, Any], tmp_path: Path, engine: str
) -> None:
    values = {**plain_values, "health": {}}
    cfg = changed(
        values,
        tmp_path,
        **QUICK,
        train={"steps": 16},
        checkpoint={"every_steps": 5},
        health={"rollback": True, "spike_window": 16},
    )
    done = launch(cfg, forked(2), {**ENGINES[engine], "FAULT": "spike:1", "FAULTY_CALL": "13"})
    assert done.returncode == 0, done.output
    assert "going back to" in done.output
    assert len(done.log("train/loss")) == 16
    assert done.log("health/spike_step") == [13]
    assert done.log("health/skipped_samples") == [16]
    newest = read_manifest(list_checkpoints(cfg.run.dir)[0])
    # steps of 8 samples: step 12 began at 88, and step 13 ended at 103
    assert newest.ledger["skipped_windows"] == list(range(88, 104))
    assert newest.ledger["samples"] == 16 * 8
    model, _ = load_model(cfg.run.dir)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_rank_that_all_waited_for_is_in_the_record(plain_values: dict[str, Any], tmp_path: Path) -> None:
    cfg = changed(plain_values, tmp_path, **QUICK, train={"steps": 8})
    done = launch(cfg, forked(2), {"FAULT": "slow:1"})  # its disk takes 3 s for the fourth step
    assert done.returncode == 0, done.output
    assert done.log("time/data_rank")[3] == 1
    assert [seconds >= 3 for seconds in done.log("time/data_s")] == [False] * 3 + [True] + [False] * 4
    assert done.log("time/compute_s")[3] < 3  # of the slow rank, not of the one that waited within its step

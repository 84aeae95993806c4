"""What `gptscale plan` says that a rank keeps, against two ranks that train."""

import json
from pathlib import Path
from typing import Any

import pytest

from gptscale.planning.launch import Launch
from gptscale.planning.state import model_state
from gptscale.runtime.zero_config import BUCKET_ELEMENTS
from tests.dist.conftest import ENGINES, changed, forked, launch

pytestmark = pytest.mark.dist

WORKER = str(Path(__file__).with_name("cost_worker.py"))
ACCUMULATION = 2


@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        ("ddp", "fp32"),
        ("zero3", "bf16"),
        pytest.param("fsdp2", "bf16-sharded", marks=pytest.mark.long),
        pytest.param("zero1", "fp32", marks=pytest.mark.long),
        pytest.param("zero1", "bf16-sharded", marks=pytest.mark.long),
        pytest.param("zero2", "bf16", marks=pytest.mark.long),
        pytest.param("zero2", "bf16-sharded", marks=pytest.mark.long),
        pytest.param("zero3", "bf16-sharded", marks=pytest.mark.long),
        pytest.param("fsdp2", "fp32", marks=pytest.mark.long),
    ],
)
def test_a_rank_keeps_what_is_planned(
    plain_values: dict[str, Any], tmp_path: Path, engine: str, precision: str
) -> None:
    cfg = changed(
        plain_values,
        tmp_path,
        model={"emb_dim": 160, "n_heads": 4, "n_layers": 4},
        train={
            "steps": 3,
            "tokens_per_step": 2 * ACCUMULATION * 32,
            "micro_batch_sequences": 1,
            "precision": precision,
        },
        optim={"warmup_steps": 1},
        eval={"sequences": 1, "train_sequences": None},
        sample={"prompts": []},
        checkpoint={"every_steps": None},
    )
    done = launch(cfg, forked(2), ENGINES[engine], [WORKER])
    assert done.returncode == 0, done.output
    phases = json.loads((tmp_path / "cost-0.json").read_text())["kept"]
    planned = model_state(cfg, Launch(engine, 2, 1), BUCKET_ELEMENTS["cpu"])
    assert phases[-1]["weights"] + phases[-1]["masters"] == pytest.approx(planned.weights, rel=0.05)
    assert phases[-1]["moments"] == pytest.approx(planned.moments, rel=0.05)
    # Some engines keep gradients in places of their own, beside buffers that stay from step to step.
    buffers = {"zero1": planned.buffers, "zero3": 4 * BUCKET_ELEMENTS["cpu"]}.get(engine, 0)
    kept = max(phase["gradients"] + phase["other"] for phase in phases)
    if (engine, precision) == ("zero1", "bf16-sharded"):
        buffers = 0  # made when they are sent
    assert kept - buffers == pytest.approx(planned.gradients, rel=0.05)

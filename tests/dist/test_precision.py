"""bf16 under every engine, and bf16-sharded from the same start."""

from pathlib import Path
from typing import Any

import pytest

from gptscale.model.gpt import GPTModel
from tests.dist.conftest import ENGINES, Done, changed, forked, launch
from tests.dist.worker import state_hash

pytestmark = pytest.mark.dist
LONG = pytest.mark.long  # another way of what the others show


def in_bf16(values: dict[str, Any], folder: Path, launcher: list[str], engine: str, **train: Any) -> Done:
    """20 steps without dropout, whose masks follow from the cut into micro-batches."""
    settings = {"steps": 20, "precision": "bf16", **train}
    cfg = changed(values, folder, train=settings, model={"drop_rate": 0.0}, sample={"prompts": []})
    done = launch(cfg, launcher, ENGINES.get(engine, {}))
    assert done.returncode == 0, done.output
    return done


@pytest.fixture(scope="module")
def one_process(plain_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], float]:
    """Losses of one process, and by how much another cut into micro-batches changes them."""
    runs = [
        in_bf16(plain_values, tmp_path_factory.mktemp("bf16"), forked(0), "none", micro_batch_sequences=n)
        for n in (2, 4, 8)
    ]
    losses = [run.log("train/loss") for run in runs]
    return losses[0], max(abs(a - b) for other in losses[1:] for a, b in zip(losses[0], other, strict=True))


@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero2", marks=LONG), "zero3", "fsdp2"])
def test_bf16_differs_no_more_than_by_another_order_of_accumulation(
    plain_values: dict[str, Any], tmp_path: Path, one_process: tuple[list[float], float], engine: str
) -> None:
    expected, bound = one_process
    found = in_bf16(plain_values, tmp_path, forked(2), engine).log("train/loss")
    assert 0 < bound < 1e-2
    assert found == pytest.approx(expected, abs=2 * bound, rel=0)


@pytest.mark.parametrize(
    "engine", [*(pytest.param(engine, marks=LONG) for engine in ("zero1", "zero2", "fsdp2", "hsdp")), "zero3"]
)
def test_bf16_sharded_starts_from_the_fp32_weights_and_stays_close(
    plain_values: dict[str, Any], tmp_path: Path, one_process: tuple[list[float], float], engine: str
) -> None:
    done = in_bf16(plain_values, tmp_path, forked(4 if engine == "hsdp" else 2), engine, precision="bf16-sharded")
    model = GPTModel(done.cfg.model, done.cfg.run.seed)
    weights = {f"weight/{name}": p.detach().flatten() for name, p in model.named_parameters()}
    assert done.watched["start"] == state_hash(weights)
    assert done.log("train/loss") == pytest.approx(one_process[0], rel=1e-2)

"""bf16 under every engine, and bf16-sharded from the same start."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gptscale.config.schema import ModelConfig, OptimizerConfig
from gptscale.model.gpt import GPTModel
from gptscale.runtime.distributed import start_engine
from gptscale.training.optimizer import build_optimizer
from tests.dist.conftest import ENGINES, Done, changed, forked, launch
from tests.dist.test_hsdp import meet, on_two_ranks
from tests.dist.worker import state_hash

pytestmark = pytest.mark.dist
LONG = pytest.mark.long  # another way of what the others show
SMALL = ModelConfig(vocab_size=16, context_length=4, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.0)


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


def test_bf16_sharded_adds_gradients_up_in_fp32_under_fsdp2() -> None:
    on_two_ranks(add_gradients_of_bf16)


def add_gradients_of_bf16(rank: int, port: int) -> None:
    meet(rank, port, **ENGINES["fsdp2"])
    engine, model = start_engine("bf16-sharded", 1), GPTModel(SMALL, seed=1)
    engine.prepare(model, build_optimizer(model, OptimizerConfig(), engine.device), compile_model=False)
    tokens = torch.arange(4)[None] + rank
    with engine.accumulate():
        engine.backward(engine.model(tokens, tokens))
    mine = engine.model.get_parameter("blocks.0.ff.fc.weight").grad.to_local()
    # the mean of two numbers of 8 bits takes more of them, but for some
    assert (mine == mine.bfloat16()).float().mean() < 0.5
    assert engine.model(tokens).dtype == torch.bfloat16  # the head too, which is no block


def test_the_bare_model_is_evaluated_in_bf16_under_zero() -> None:
    on_two_ranks(evaluate_in_bf16)


def evaluate_in_bf16(rank: int, port: int) -> None:
    meet(rank, port, **ENGINES["zero2"])
    engine, model, same = start_engine("bf16", 1), GPTModel(SMALL, seed=1), GPTModel(SMALL, seed=1).eval()
    engine.prepare(model, build_optimizer(model, OptimizerConfig(), engine.device), compile_model=False)
    tokens = torch.arange(4)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = same(tokens, tokens)
    assert engine.dp_shard_size == 2
    with engine.evaluating():
        assert engine.bare_model(tokens, tokens) == expected
    assert expected != same(tokens, tokens)  # in fp32

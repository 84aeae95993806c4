"""Histograms of a model that is cut over ranks: numpy's of the whole tensors, under every engine."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptscale.config.schema import Config
from gptscale.model.gpt import GPTModel
from tests.dist.conftest import ENGINES, OFFLOAD, changed, forked, launch
from tests.dist.histogram_worker import samples

pytestmark = pytest.mark.dist
WORKER = str(Path(__file__).with_name("histogram_worker.py"))


def found_by_ranks(values: dict[str, Any], folder: Path, world: int, env: dict[str, str], precision: str) -> Any:
    """What both ranks found in a step of four samples, two and two the same."""
    train = {"tokens_per_step": 128, "micro_batch_sequences": 2, "precision": precision}
    cfg = changed(values, folder, model={"drop_rate": 0.0}, train=train, optim={"clip_norm": None})
    done = launch(cfg, forked(world), env, [WORKER])
    assert done.returncode == 0, done.output
    first, *others = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(max(world, 1))]
    assert all(found == first for found in others)
    return cfg, first


def expected(cfg: Config) -> dict[str, Any]:
    """numpy's histograms of a model in one piece: four samples of 32 tokens, two and two the same, give its mean."""
    model = GPTModel(cfg.model, cfg.run.seed)
    (model(samples()[:, :-1], samples()[:, 1:]).sum() / 64).backward()
    histograms = {}
    for name, p in model.named_parameters():
        assert p.grad is not None
        for folder, tensor in (("parameters", p.detach()), ("gradients", p.grad)):
            counts, edges = np.histogram(tensor.double().numpy(), bins=64)
            histograms[f"{folder}/{name}"] = {"low": edges[0], "high": edges[-1], "counts": counts.tolist()}
    return histograms


@pytest.mark.parametrize(
    ("world", "env"),
    [(0, {}), *((2, env) for env in ENGINES.values()), (2, {**ENGINES["zero2"], **OFFLOAD})],
    ids=["none", *ENGINES, "zero2-offload"],
)
def test_every_engine_counts_what_numpy_counts_in_the_whole(
    plain_values: dict[str, Any], tmp_path: Path, world: int, env: dict[str, str]
) -> None:
    # Halves and sums of equal numbers are exact, so that every engine has the same gradients to the last bit.
    cfg, found = found_by_ranks(plain_values, tmp_path, world, env, "fp32")
    assert found == expected(cfg)


@pytest.mark.parametrize("engine", [pytest.param("zero1", marks=pytest.mark.long), "zero3", "fsdp2"])
def test_sixteen_bits_leave_no_value_out(plain_values: dict[str, Any], tmp_path: Path, engine: str) -> None:
    cfg, found = found_by_ranks(plain_values, tmp_path, 2, ENGINES[engine], "bf16-sharded")
    sizes = {name: p.numel() for name, p in GPTModel(cfg.model, seed=0).named_parameters()}
    assert {name: sum(its["counts"]) for name, its in found.items()} == {
        f"{folder}/{name}": size for folder in ("parameters", "gradients") for name, size in sizes.items()
    }

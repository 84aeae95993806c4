"""Histograms of parameters and gradients, against numpy's."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gptscale.config.load import parse_config
from gptscale.runtime.distributed import start_engine
from gptscale.runtime.engine import Engine
from gptscale.runtime.fragments import Fragment
from gptscale.tracking.jsonl import read_histograms
from gptscale.training import histograms
from gptscale.training.histograms import HistogramTaker, counted
from gptscale.training.run import train
from gptscale.training.step import StepResult

FINITE = StepResult(torch.tensor(1.0), torch.tensor(1.0))


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = start_engine("fp32", 1)
    yield engine
    engine.close()


def taken(engine: Engine, values: Tensor, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is found where a rank holds these values as the only tensor of a model."""
    monkeypatch.setattr(engine, "parameter_names", lambda: ["w"])
    taker = HistogramTaker(engine, 1)
    taker._see([Fragment("w", tuple(values.shape), 0, {"weight": values}, {})])
    return taker.take(FINITE)


@pytest.mark.parametrize(
    "values",
    [
        torch.linspace(-3, 5, 1001).sin(),
        torch.arange(65.0),  # every value on an edge
        torch.full((7,), 2.0),
        1 + torch.arange(3) * 2.0**-23,  # neighbours in single precision
        torch.tensor([0.0, 1e-45]),
        torch.tensor([-3e38, 3e38]),
    ],
    ids=["many", "on-edges", "one-value", "neighbours", "smallest", "largest"],
)
def test_the_bins_and_their_counts_are_numpys(engine: Engine, values: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histograms, "VALUES_AT_ONCE", 400)
    counts, edges = np.histogram(values.double().numpy(), bins=64)
    (found,) = taken(engine, values, monkeypatch).values()
    assert found.counts == counts.tolist()
    assert found.edges == edges.tolist()


def test_the_last_bin_holds_its_upper_end() -> None:
    # 64 bins of width 1
    assert counted(torch.tensor([0.0, 0.5, 63.5, 64.0]), 0, 64).tolist() == [2, *[0] * 62, 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_that_is_not_finite_has_none(engine: Engine, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(engine, torch.tensor([1.0, value]), monkeypatch) == {}


def test_nothing_is_told_of_a_skipped_step(engine: Engine) -> None:
    model = torch.nn.Linear(3, 2)
    engine.prepare(model, torch.optim.AdamW(model.parameters(), fused=True), compile_model=False)
    taker = HistogramTaker(engine, 1)
    for factor, told in ((float("nan"), 0), (1.0, 4)):
        with taker.of(1):
            with engine.accumulate():
                engine.backward(engine.model(torch.ones(1, 3)).sum() * factor)
            norm = engine.update(clip_norm=1.0)
        assert len(taker.take(StepResult(norm, norm))) == told
    assert taker.take(FINITE) == {}  # each is told once


def test_a_run_has_them_every_so_many_steps_and_once_after_a_resume(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values["train"] |= {"steps": 8, "histograms_every_steps": 3}
    values["checkpoint"]["every_steps"] = 4
    values["sample"]["prompts"] = []
    run_dir = Path(values["run"]["dir"])
    with monkeypatch.context() as broken:
        broken.setattr("gptscale.training.loop.train_step", failing_at(7))
        with pytest.raises(OSError, match="gone at 7"):
            train(parse_config(values))
    assert steps(run_dir) == [3, 6]
    assert train(parse_config(values))  # goes on from step 4
    assert steps(run_dir) == [3, 6]
    progress, found = list(read_histograms(run_dir / "histograms.jsonl"))[1]
    assert progress["tokens"] == 6 * 256
    assert sorted({name.split("/")[0] for name in found}) == ["gradients", "parameters"]
    for of_embedding in (found["gradients/tok_emb.weight"], found["parameters/tok_emb.weight"]):
        assert sum(of_embedding.counts) == 320 * 32  # 257 tokens, filled up to a multiple of 64


def steps(run_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run_dir / "histograms.jsonl").read_text().splitlines()]


def failing_at(step: int) -> Callable[..., StepResult]:
    from gptscale.training.step import train_step

    def failing(*args: Any, **kwargs: Any) -> StepResult:
        if kwargs["step"] == step - 1:
            raise OSError(f"gone at {step}")
        return train_step(*args, **kwargs)

    return failing


def test_a_run_has_none_unless_asked(values: dict[str, Any]) -> None:
    values["train"]["steps"] = 2
    train(parse_config(values))
    assert not (Path(values["run"]["dir"]) / "histograms.jsonl").exists()

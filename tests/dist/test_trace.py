"""The engine and the number of ranks are where a run lives, not what it is."""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest
import torch

from gptscale.data.corpora import open_corpora
from gptscale.data.corpus import open_corpus
from gptscale.data.loader import StepLoader
from gptscale.model.gpt import GPTModel
from gptscale.runtime.seeding import seed_micro_batch
from gptscale.training.schedule import lr_at
from tests.dist.conftest import ENGINES, Done

pytestmark = pytest.mark.dist

Trace = Callable[[str, int], Done]
TWO_RANKS = [(engine, 2) for engine in ENGINES if engine != "hsdp"]
MORE_RANKS = [("ddp", 3), ("ddp", 4), ("zero3", 4), ("hsdp", 4)]


@pytest.mark.parametrize(("engine", "world"), TWO_RANKS + MORE_RANKS)
def test_loss_and_gradient_norm_are_those_of_one_process_at_every_step(trace: Trace, engine: str, world: int) -> None:
    one, run = trace("none", 1), trace(engine, world)
    assert f"engine {engine}" in run.output
    for measurement in ("train/loss", "train/grad_norm", "val/loss", "eval_train/loss"):
        assert run.log(measurement) == pytest.approx(one.log(measurement), rel=1e-5), measurement
    assert len(run.log("train/loss")) == 50
    texts = [(done.cfg.run.dir / "samples.jsonl").read_text() for done in (one, run)]
    assert texts[0] == texts[1]


def test_a_world_that_does_not_divide_the_step_says_what_it_costs(trace: Trace) -> None:
    # 8 sequences in micro-batches of 2 on 3 ranks: 2 rounds of 6 = 12, so 4 of 12 are filling
    assert "4 of them are filling of weight zero, 33% of the work" in trace("ddp", 3).output


@pytest.mark.parametrize(("engine", "world"), TWO_RANKS)
def test_what_is_not_compiled_does_not_load_the_compiler(trace: Trace, engine: str, world: int) -> None:
    assert not trace(engine, world).watched["inductor"]  # seconds of every start


@pytest.mark.parametrize(("engine", "world"), TWO_RANKS)
def test_transformers_need_not_be_installed(trace: Trace, engine: str, world: int) -> None:
    assert not trace(engine, world).watched["transformers"]


@pytest.mark.parametrize(("engine", "world"), [("none", 1), *TWO_RANKS])
def test_the_optimizer_ran_at_the_rate_of_the_schedule(trace: Trace, engine: str, world: int) -> None:
    run = trace(engine, world)
    used = [rate for rate, _ in groupby(run.watched["rates"])]
    assert used == [lr_at(step, run.cfg.optim, 50) for step in range(50)]


@pytest.mark.parametrize(("engine", "world"), [("none", 1), *TWO_RANKS])
def test_the_first_update_is_clipped_adamw_written_out(trace: Trace, engine: str, world: int) -> None:
    run = trace(engine, world)
    cfg, optim = run.cfg, run.cfg.optim
    model = GPTModel(cfg.model, cfg.run.seed)
    with first_step(cfg) as loader:
        for batch in loader.next_step():
            seed_micro_batch(cfg.run.seed, 0, batch.first_position)
            (model(batch.inputs, batch.targets) / cfg.train.tokens_per_step).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()  # type: ignore[union-attr]
    assert norm > 0.1
    moved = torch.load(cfg.run.dir.parent / "first.pt", weights_only=True)
    lr = lr_at(0, optim, 50)
    for name, p in model.named_parameters():
        g = p.grad * (0.1 / (norm + 1e-6))  # type: ignore[operator]
        decayed = p * (1 - lr * optim.weight_decay) if p.dim() >= 2 else p
        expected = decayed - lr * g / (g.abs() + optim.eps)
        torch.testing.assert_close(moved[f"weight/{name}"].view_as(p), expected.detach(), atol=1e-6, rtol=0, msg=name)


def first_step(cfg: Any) -> StepLoader:
    return StepLoader(
        open_corpus(cfg.data.dir).train,
        sampler=open_corpora(cfg).sampler(cfg),
        context_length=cfg.model.context_length,
        sequences_per_step=cfg.sequences_per_step,
        micro_batch_sequences=cfg.train.micro_batch_sequences,
        rank=0,
        world=1,
        total_steps=1,
    )

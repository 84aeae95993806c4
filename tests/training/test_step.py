"""One update against the same update worked out another way."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.data.corpora import open_corpora
from gptscale.data.corpus import open_corpus
from gptscale.data.loader import StepLoader
from gptscale.data.sampler import count_samples
from gptscale.model.gpt import GPTModel
from gptscale.runtime.distributed import start_engine
from gptscale.runtime.engine import Engine
from gptscale.training.optimizer import build_optimizer
from gptscale.training.plan import Plan, make_plan
from gptscale.training.step import StepResult, train_step


def one_update(cfg: Config, clip_norm: float | None = None, step: int = 0) -> tuple[GPTModel, StepResult]:
    """Train a new model for one step, on the samples of the first."""
    corpus = open_corpus(cfg.data.dir)
    plan = make_plan(cfg, count_samples(len(corpus.train), 32, cfg.stride), 1)
    engine = start_engine(cfg.train.precision, plan.accumulation)
    try:
        model = GPTModel(cfg.model, cfg.run.seed)
        engine.prepare(model, build_optimizer(model, cfg.optim, engine.device), compile_model=False)
        with loader(cfg, plan) as steps:
            result = train_step(engine, plan, steps.next_step(), seed=1, step=step, lr=1e-2, clip_norm=clip_norm)
        return model, result
    finally:
        engine.close()


def loader(cfg: Config, plan: Plan) -> StepLoader:
    return StepLoader(
        open_corpus(cfg.data.dir).train,
        sampler=open_corpora(cfg).sampler(cfg),
        context_length=32,
        sequences_per_step=plan.sequences_per_step,
        micro_batch_sequences=plan.micro_batch_sequences,
        rank=0,
        world=1,
        total_steps=plan.total_steps,
    )


def with_values(values: dict[str, Any], **changes: dict[str, Any]) -> Config:
    return parse_config({**values, **{name: {**values[name], **change} for name, change in changes.items()}})


@pytest.mark.parametrize("micro_batch", [4, 2, 1, 3], ids=["two", "four", "eight", "three-with-filler"])
def test_accumulated_pieces_update_like_one_piece(values: dict[str, Any], micro_batch: int) -> None:
    still = {"drop_rate": 0.0}
    whole, a = one_update(with_values(values, model=still, train={"micro_batch_sequences": 8}))
    pieces, b = one_update(with_values(values, model=still, train={"micro_batch_sequences": micro_batch}))
    torch.testing.assert_close(a.loss, b.loss, atol=1e-6, rtol=0)
    torch.testing.assert_close(a.grad_norm, b.grad_norm, atol=1e-6, rtol=1e-6)
    for (name, p), q in zip(whole.named_parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=0, msg=name)


def test_one_update_equals_adamw_written_out(values: dict[str, Any]) -> None:
    cfg = with_values(values, model={"drop_rate": 0.0}, optim={"weight_decay": 0.1, "eps": 1e-3})
    model, result = one_update(cfg)
    plan = make_plan(cfg, 100, 1)
    reference = GPTModel(cfg.model, cfg.run.seed)
    with loader(cfg, plan) as steps:
        batches = steps.next_step()
    inputs, targets = (torch.cat([getattr(b, kind) for b in batches]) for kind in ("inputs", "targets"))
    loss = F.cross_entropy(reference(inputs).flatten(0, 1), targets.flatten())
    loss.backward()
    grads = {name: p.grad for name, p in reference.named_parameters()}

    torch.testing.assert_close(result.loss, loss.detach())
    norm = torch.stack([g.norm() for g in grads.values()]).norm()
    torch.testing.assert_close(result.grad_norm, norm)
    for name, p in reference.named_parameters():
        g = grads[name]
        decayed = p * (1 - 1e-2 * 0.1) if p.dim() >= 2 else p
        # At the first step both moments, freed of their bias, are the gradient and its square.
        expected = decayed - 1e-2 * g / (g.abs() + 1e-3)
        torch.testing.assert_close(dict(model.named_parameters())[name], expected, atol=1e-6, rtol=0, msg=name)


def test_dropout_has_other_masks_at_every_step_and_those_of_a_step_again(values: dict[str, Any]) -> None:
    cfg = with_values(values, model={"drop_rate": 0.5})
    first, again, later = (float(one_update(cfg, step=step)[1].loss) for step in (0, 0, 1))  # of the same sequences
    assert first == again != later


def test_clipping_scales_the_gradient_to_the_limit_and_reports_the_norm_before(values: dict[str, Any]) -> None:
    cfg = with_values(values, model={"drop_rate": 0.0}, optim={"weight_decay": 0.0, "eps": 1.0})
    free, a = one_update(cfg)
    clipped, b = one_update(cfg, clip_norm=0.1)
    assert float(a.grad_norm) == float(b.grad_norm) > 0.1
    scale = 0.1 / float(a.grad_norm)
    start = dict(GPTModel(cfg.model, cfg.run.seed).named_parameters())
    for (name, p), q in zip(free.named_parameters(), clipped.parameters(), strict=True):
        moved = start[name] - p  # lr * g / (|g| + 1)
        g = moved / 1e-2 / (1 - (moved / 1e-2).abs())
        expected = start[name] - 1e-2 * scale * g / ((scale * g).abs() + 1)
        torch.testing.assert_close(q, expected, atol=2e-6, rtol=0, msg=name)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = start_engine("fp32", 1)
    yield engine
    engine.close()


@pytest.mark.parametrize("fused", [True, False])  # no device but a CPU and a GPU skips it by itself
def test_a_gradient_that_is_not_finite_changes_no_weight(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    if not fused:
        monkeypatch.setattr("gptscale.runtime.engine.LEAVING_OUT", ())
    model = torch.nn.Linear(3, 2)
    engine.prepare(model, torch.optim.AdamW(model.parameters(), fused=fused), compile_model=False)
    before = [p.detach().clone() for p in model.parameters()]
    for factor, moved in ((float("nan"), False), (float("inf"), False), (1.0, True)):
        with engine.accumulate():
            engine.backward(engine.model(torch.ones(1, 3)).sum() * factor)
        engine.update(clip_norm=1.0)
        assert moved == any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_step_goes_by_its_own_rate_and_not_by_the_peak(values: dict[str, Any]) -> None:
    wanted, _ = one_update(with_values(values, optim={"lr_peak": 1e-2}))  # the rate of the step
    found, _ = one_update(with_values(values, optim={"lr_peak": 1.0}))
    assert all(torch.equal(p, q) for p, q in zip(wanted.parameters(), found.parameters(), strict=True))

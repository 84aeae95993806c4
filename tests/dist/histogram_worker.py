"""One rank that takes one step, the same samples on each, and notes the histograms of it beside its config."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from gptscale.config.load import load_config
from gptscale.data.loader import MicroBatch
from gptscale.model.gpt import GPTModel
from gptscale.runtime import ranks
from gptscale.runtime.distributed import start_engine
from gptscale.runtime.launch import launched_world
from gptscale.training.histograms import HistogramTaker
from gptscale.training.optimizer import build_optimizer
from gptscale.training.plan import make_plan
from gptscale.training.step import train_step


def samples() -> torch.Tensor:
    """Two samples of 32 tokens and the one after them."""
    return torch.arange(66).mul(37).remainder(257).view(2, 33)


def main(config: Path) -> None:
    cfg = load_config(config)
    ranks.join()
    plan = make_plan(cfg, 100, launched_world())
    engine = start_engine(cfg.train.precision, plan.accumulation, micro_batch_sequences=2)
    model = GPTModel(cfg.model, cfg.run.seed)
    engine.prepare(model, build_optimizer(model, cfg.optim, engine.device), compile_model=False)
    taker = HistogramTaker(engine, every_steps=1)
    batch = MicroBatch(samples()[:, :-1], samples()[:, 1:], first_position=0)
    with taker.of(1):
        result = train_step(engine, plan, [batch] * plan.accumulation, seed=1, step=0, lr=1e-3, clip_norm=None)
    found = {name: asdict(histogram) for name, histogram in taker.take(result).items()}
    (config.parent / f"rank-{engine.rank}.json").write_text(json.dumps(found))
    ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[2]))

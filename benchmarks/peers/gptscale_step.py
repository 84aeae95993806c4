"""gptscale's own step, as its loop calls it."""

from side_by_side import Contest

from gptscale.config.load import parse_config
from gptscale.data.loader import MicroBatch
from gptscale.model.gpt import GPTModel
from gptscale.runtime.device import keeping_freed_memory
from gptscale.runtime.distributed import start_engine
from gptscale.runtime.launch import launched_rank, launched_world
from gptscale.training.optimizer import build_optimizer
from gptscale.training.plan import make_plan
from gptscale.training.step import train_step


def train(contest: Contest) -> None:
    """Step for step; of several ranks each takes its rows of a batch."""
    setup = contest.setup
    batches = contest.batches()
    inputs, _ = next(batches)
    rows = len(inputs) // launched_world()
    cfg = parse_config(
        {
            "run": {"dir": "unused"},
            "data": {"dir": "unused"},
            "model": setup.model,
            "train": {"steps": 10**9, "tokens_per_step": inputs.numel(), "micro_batch_sequences": rows},
            "optim": {"weight_decay": setup.weight_decay, "beta1": setup.betas[0], "beta2": setup.betas[1]},
        }
    )
    engine = start_engine(setup.precision, 1, micro_batch_sequences=rows, clip_norm=setup.clip_norm)
    model = GPTModel(cfg.model, seed=0).to(engine.device)
    engine.prepare(model, build_optimizer(model, cfg.optim, engine.device), setup.compile)
    plan = make_plan(cfg, len(inputs), launched_world())
    mine = slice(launched_rank() * rows, (launched_rank() + 1) * rows)
    with keeping_freed_memory(engine.device):
        for step, (inputs, targets) in enumerate(contest.batches()):
            micro_batches = [MicroBatch(inputs[mine], targets[mine], mine.start)]
            result = train_step(engine, plan, micro_batches, seed=0, step=step, lr=setup.lr, clip_norm=setup.clip_norm)
            contest.step_done(engine.sum_over_ranks(result.loss))

"""The training loop of chapter 5 of "Build a Large Language Model (From Scratch)", from a copy of its repository.

It computes in float32 and is not compiled. So that it computes what the others do, it clips (as in the book's appendix
D), its queries, keys and values have biases, and its head is the embedding. With gate_steps, from then on it also does
what its gpt_train.py does besides: dropout of 0.1, and every 5 steps the loss of one training and one validation batch.
"""

import importlib
import sys
from pathlib import Path

import torch
from side_by_side import Contest
from torch import Tensor, nn

DROP_RATE = 0.1
EVAL_STEPS = 5


def train(contest: Contest) -> None:
    """Step for step, as train_model_simple does."""
    setup, cfg = contest.setup, contest.cfg
    sys.path.insert(0, str(Path(setup.path, "ch05", "01_main-chapter-code")))
    theirs = importlib.import_module("previous_chapters")
    names = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "drop_rate", "qkv_bias")
    model = theirs.GPTModel({name: getattr(cfg, name) for name in names})
    model.load_state_dict(contest.weights("book"), strict=False)
    model.out_head.weight = model.tok_emb.weight
    model.to(contest.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setup.lr, betas=setup.betas, weight_decay=setup.weight_decay)
    model.train()
    for step, (inputs, targets) in enumerate(contest.batches()):
        if step == setup.gate_steps:
            drop(model)
        optimizer.zero_grad()
        loss = loss_of(model, inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), setup.clip_norm)
        optimizer.step()
        if setup.gate_steps is not None and step >= setup.gate_steps and step % EVAL_STEPS == 0:
            evaluate(model, contest)
        contest.step_done(loss.detach())


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of a batch, as calc_loss_batch gives it."""
    return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def drop(model: nn.Module) -> None:
    """Switch its dropout on."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = DROP_RATE


@torch.no_grad()
def evaluate(model: nn.Module, contest: Contest) -> None:
    """The losses of two batches, as evaluate_model takes them with an eval_iter of 1."""
    model.eval()
    batches = contest.batches()
    for _ in ("training", "validation"):
        loss_of(model, *next(batches)).item()
    model.train()

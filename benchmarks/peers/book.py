"""The training loop of chapter 5 of "Build a Large Language Model (From Scratch)", from a copy of its repository.

It computes in float32 and is not compiled. So that it computes what the others do, it clips (as in the book's appendix
D), its queries, keys and values have biases, and its head is the embedding.
"""

import importlib
import sys
from pathlib import Path

import torch
from side_by_side import Contest


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
    for inputs, targets in contest.batches():
        optimizer.zero_grad()
        logits = model(inputs)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), setup.clip_norm)
        optimizer.step()
        contest.step_done(loss.detach())

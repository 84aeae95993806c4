"""nanoGPT's model and optimizer from a copy of its repository, driven as its train.py does.

On a CPU train.py computes in float32 whatever its dtype says; precision bf16 switches its autocast on there too.
"""

import importlib
import sys
from contextlib import nullcontext

import torch
from side_by_side import Contest


def train(contest: Contest) -> None:
    """Step for step."""
    setup, cfg = contest.setup, contest.cfg
    sys.path.insert(0, setup.path)
    theirs = importlib.import_module("model")
    shape = {"n_layer": cfg.n_layers, "n_head": cfg.n_heads, "n_embd": cfg.emb_dim, "block_size": cfg.context_length}
    model = theirs.GPT(theirs.GPTConfig(**shape, bias=True))  # whose vocabulary is 50,304
    load(model, contest)
    model.to(contest.device)
    optimizer = model.configure_optimizers(setup.weight_decay, setup.lr, setup.betas, contest.device.type)
    if setup.compile:
        model = torch.compile(model)
    torch.backends.cuda.matmul.allow_tf32 = True  # so on CUDA its fp32 is TF32
    autocast = nullcontext() if setup.precision == "fp32" else torch.autocast(contest.device.type, torch.bfloat16)
    for inputs, targets in contest.batches():
        with autocast:
            _, loss = model(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), setup.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        contest.step_done(loss.detach())  # train_gpt2.py waits for the loss in every tenth step only


@torch.no_grad()
def load(model: torch.nn.Module, contest: Contest) -> None:
    """Put the weights in; ids beyond the vocabulary get rows of zeros."""
    for name, values in contest.weights("nanogpt").items():
        p = model.get_parameter(f"transformer.{name}")
        p.zero_()[: len(values)] = values

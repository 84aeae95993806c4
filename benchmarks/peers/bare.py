"""Our model, compiled, with nothing around it: forward, backward, clipping, fused AdamW, on batches in memory."""

import torch
from side_by_side import Contest

from gptscale.model.gpt import GPTModel
from gptscale.runtime.device import keeping_freed_memory


def train(contest: Contest) -> None:
    """Step for step."""
    setup = contest.setup
    model = GPTModel(contest.cfg, seed=0).to(contest.device)
    if setup.compile:
        model.compile()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=setup.lr, betas=setup.betas, weight_decay=setup.weight_decay, fused=True
    )
    autocast = torch.autocast(contest.device.type, torch.bfloat16, enabled=setup.precision == "bf16")
    with keeping_freed_memory(contest.device):  # as the loop has it
        for inputs, targets in contest.batches():
            with autocast:
                loss = model(inputs, targets) / targets.numel()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), setup.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            contest.step_done(loss.detach())

"""AdamW as GPT-2-family models are trained with it."""

import torch
from torch import nn

from gptscale.config.schema import OptimizerConfig

FUSED_DEVICES = ("cpu", "cuda", "mps")


def build_optimizer(model: nn.Module, optim: OptimizerConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW with decay on matrices only; biases and norm gains are left to find their own scale."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    free = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups,
        lr=optim.lr_peak,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=device.type in FUSED_DEVICES,
    )

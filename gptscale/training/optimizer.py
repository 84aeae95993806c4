"""The optimizers that GPT-2-family models are trained with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gptscale.config.schema import OptimizerConfig
from gptscale.runtime.muon import Muon

FUSED_DEVICES = ("cpu", "cuda", "mps")


def build_optimizer(model: nn.Module, optim: OptimizerConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW, or Muon with AdamW, with decay on matrices only.

    Biases and norm gains are left to find their own scale.
    """
    named = list(model.named_parameters())
    for_muon = [p for name, p in named if optim.name == "muon" and p.dim() == 2 and name.startswith("blocks.")]
    chosen = {id(p) for p in for_muon}
    decayed = [p for _, p in named if p.dim() >= 2 and id(p) not in chosen]
    free = [p for _, p in named if p.dim() < 2]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": free, "weight_decay": 0.0}],
        lr=optim.lr_peak,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=device.type in FUSED_DEVICES,
    )
    if optim.name == "adamw":
        return adamw
    return MuonWithAdamW(
        Muon(
            for_muon,
            lr=optim.lr_peak,
            weight_decay=optim.weight_decay,
            momentum=optim.momentum,
            # Scales an update to the size of AdamW's, so that one rate serves both (Liu et al. 2025, Moonlight).
            adjust_lr_fn="match_rms_adamw",
        ),
        adamw,
    )


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon and torch's AdamW as one optimizer: one list of groups, one state, one step."""

    def __init__(self, muon: Muon, adamw: torch.optim.AdamW) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._muon, self._adamw = muon, adamw

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters, unless `found_inf` says that a gradient is not finite.

        AdamW reads that flag on the device; Muon cannot, and waits for it here.
        """
        assert closure is None
        if getattr(self, "found_inf", False):
            return
        # Both share the groups and the state of this optimizer, which `load_state_dict` replaces by new ones.
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self._muon.state = self._adamw.state = self.state
        self._muon.step()
        self._adamw.step()

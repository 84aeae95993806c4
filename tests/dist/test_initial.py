"""Runs that start from other weights, in several processes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from gptscale.config.schema import Config
from gptscale.data.corpus import open_corpus
from gptscale.data.loader import StepLoader
from tests.dist.conftest import ENGINES, changed, launch, torchrun

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def theirs(plain_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GPT2LMHeadModel]:
    """A GPT-2 of transformers in a folder, of the shape of the runs here, with twice their context."""
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=257, n_positions=64, n_embd=32, n_head=2, n_layer=2, bos_token_id=256, eos_token_id=256)
    ).eval()
    generator = torch.Generator().manual_seed(3)
    for p in model.parameters():
        p.data.normal_(0.0, 0.2, generator=generator)
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    return folder, model


def first_batch(cfg: Config) -> torch.Tensor:
    """The samples of step 0, all of them, as one process would read them."""
    with StepLoader(
        open_corpus(cfg.data.dir).train,
        context_length=cfg.model.context_length,
        stride=cfg.stride,
        seed=cfg.run.seed,
        sequences_per_step=cfg.sequences_per_step,
        micro_batch_sequences=cfg.sequences_per_step,
        rank=0,
        world=1,
        total_steps=1,
    ) as loader:
        (batch,) = loader.next_step()
    return torch.cat([batch.inputs, batch.targets[:, -1:]], dim=1)


@pytest.mark.parametrize("engine", ["none", "ddp", "zero1", "zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16-sharded"])
def test_the_first_loss_is_that_of_transformers(
    plain_values: dict[str, Any], tmp_path: Path, theirs: Any, engine: str, precision: str
) -> None:
    if precision == "bf16-sharded" and engine not in ("zero2", "zero3", "fsdp2"):
        pytest.skip("has nothing to shard")
    folder, model = theirs
    cfg = changed(
        plain_values,
        tmp_path,
        model={"init_from": str(folder), "drop_rate": 0.0},
        train={"steps": 3, "precision": precision},
        optim={"warmup_steps": 0, "lr_peak": 1e-3},
        sample={"prompts": []},
    )
    done = launch(cfg, [sys.executable] if engine == "none" else torchrun(2), ENGINES.get(engine, {}))
    assert done.returncode == 0, done.output
    tokens = first_batch(cfg)
    with torch.no_grad():
        logits = model(tokens[:, :-1]).logits
    expected = float(F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
    losses = done.log("train/loss")
    assert losses[0] == pytest.approx(expected, abs=1e-4 if precision == "fp32" else 2e-2)
    assert losses[-1] < losses[0]
    assert f"starting from {folder}" in done.output
    assert "positions: the first 32 of 64" in done.output
    # 257 x 32 tokens, 32 x 32 positions, 2 blocks of 12 x 32^2 + 13 x 32, and a norm of 2 x 32
    assert "model: 34,720 parameters" in done.output

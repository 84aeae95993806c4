"""What `gptscale plan` says that a micro-batch takes, against CUDA's allocator."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptscale.config.load import parse_config
from gptscale.planning.launch import Launch
from gptscale.planning.memory import memory_of
from tests.conftest import small_values

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ROOT = Path(__file__).parents[2]

STEP = """
import json, sys, torch
from gptscale.config.load import load_config
from gptscale.model.gpt import GPTModel
from gptscale.training.optimizer import build_optimizer

cfg = load_config(sys.argv[1])
device = torch.device("cuda")
model = GPTModel(cfg.model).to(device)
model.recompute = cfg.train.activation_checkpointing
if cfg.train.compile:
    model.compile(dynamic=False)
optimizer = build_optimizer(model, cfg.optim, device)
tokens = torch.zeros(cfg.train.micro_batch_sequences, cfg.model.context_length, dtype=torch.int64, device=device)
for number in range(3):
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16, enabled=cfg.train.precision == "bf16"):
            loss = model(tokens, tokens)
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(json.dumps(torch.cuda.max_memory_allocated()))
"""


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("layers", "width", "sequences"), [(12, 768, 8), (4, 1024, 16)])
def test_the_peak_is_the_planned_one(
    tmp_path: Path, precision: str, recompute: bool, compiled: bool, layers: int, width: int, sequences: int
) -> None:
    values = small_values(tmp_path)
    values["model"] = {"emb_dim": width, "n_heads": width // 64, "n_layers": layers}
    values["train"] |= {
        "precision": precision,
        "compile": compiled,
        "activation_checkpointing": recompute,
        "tokens_per_step": 2 * sequences * 1024,
        "micro_batch_sequences": sequences,
    }
    cfg = parse_config(values)
    (tmp_path / "config.yaml").write_text(json.dumps(cfg.model_dump(mode="json")))
    command = [sys.executable, "-c", STEP, str(tmp_path / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert memory_of(cfg, Launch("none", 1, sequences)).total == pytest.approx(json.loads(done.stdout), rel=0.1)

"""Exports that are larger than the memory that they may take."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gptscale.checkpoint.layout import CheckpointManifest, part_name, write_manifest
from gptscale.checkpoint.portable import merge_parts, write_part
from gptscale.config.load import parse_config
from gptscale.config.schema import Config, ModelConfig
from gptscale.model.gpt import GPTModel
from gptscale.runtime.fragments import Fragment
from tests.weights.conftest import assert_same, logits_of

WORLD = 64

EXPORT = """
import re, resource, sys
from gptscale.cli import export
import gptscale.checkpoint.source, gptscale.weights.export, gptscale.data.tokenizer, gptscale.model.gpt
import torch
with torch.device("meta"):
    torch.nn.Embedding(2, 2)  # what torch loads for it once
torch.ones(64, 64).T.contiguous().isfinite().all()
allowed = int(sys.argv[3])
taken = 1024 * int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_DATA, (taken + allowed, taken + allowed))
export.export(sys.argv[1], sys.argv[2], part_size_mb=int(sys.argv[4]))
"""
"""Exports with a limit on the memory that it may take."""


def zero3_fragments(model: GPTModel, rank: int) -> list[Fragment]:
    """What rank of 64 holds under ZeRO-3: its 64th of every parameter, the last ones shorter or nothing."""
    found = []
    for name, p in model.named_parameters():
        flat = p.detach().view(-1)
        part = math.ceil(flat.numel() / WORLD)
        mine = flat[rank * part : (rank + 1) * part]
        if len(mine):
            moments = {"exp_avg": torch.zeros_like(mine), "exp_avg_sq": torch.zeros_like(mine)}
            found.append(
                Fragment(name, tuple(p.shape), rank * part, {"weight": mine, **moments}, {"step": torch.tensor(7.0)})
            )
    return found


def write_checkpoint(folder: Path, model: GPTModel) -> None:
    cfg: Config = parse_config(
        {
            "run": {"dir": "none"},
            "model": model.cfg.model_dump(),
            "data": {"dir": "none", "source": {"path": "books/"}, "tokenizer": "bytes"},
            "train": {"steps": 7, "tokens_per_step": 24, "micro_batch_sequences": 1},
        }
    )
    folder.mkdir(parents=True)
    parts = [write_part(folder, part_name(r, WORLD), zero3_fragments(model, r)) for r in range(WORLD)]
    files = {p.file: p.record for p in parts}
    config = cfg.model_dump(mode="json")
    write_manifest(
        folder, CheckpointManifest(7, {"samples": 9}, config, "f" * 64, "zero3", WORLD, files, merge_parts(parts))
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GPTModel]:
    """A run whose newest checkpoint 64 ranks have written: 27 million parameters, 108 MB of weights."""
    folder = tmp_path_factory.mktemp("large") / "run"
    cfg = ModelConfig(vocab_size=257, context_length=24, emb_dim=768, n_heads=4, n_layers=4, tie_embeddings=False)
    model = GPTModel(cfg, seed=None).eval()
    for p in model.parameters():
        p.data.normal_(0.0, 0.02)
    write_checkpoint(folder / "checkpoints" / "step-00000007", model)
    (folder / "log.jsonl").write_text(
        '{"step": 5, "train/loss": 3.25}\n{"step": 7, "val/loss": 3.5}\n{"step": 8, "val/loss": 1}\n'
    )
    return folder, model


def limited_export(run: Path, to: Path, allowed_mb: int, part_size_mb: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", EXPORT, str(run), str(to), str(allowed_mb * 1_000_000), str(part_size_mb)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_64_parts_of_zero3_are_exported_within_the_memory_of_a_part(run: tuple[Path, GPTModel], tmp_path: Path) -> None:
    folder, model = run
    done = limited_export(folder, tmp_path / "exported", allowed_mb=60, part_size_mb=10)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "exported").glob("model-*.safetensors"))) > 10
    assert_same(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "exported")), logits_of(model))
    # With one part for all, the same limit is too little: it does limit.
    done = limited_export(folder, tmp_path / "whole", allowed_mb=60, part_size_mb=1000)
    assert done.returncode != 0
    assert "alloc" in done.stderr


def test_the_model_card_says_data_steps_and_losses(run: tuple[Path, GPTModel], tmp_path: Path) -> None:
    from gptscale.cli.export import export

    export(run[0], tmp_path / "small-model")
    card = (tmp_path / "small-model" / "README.md").read_text()
    numbers = 2 * 257 * 768 + 24 * 768 + 4 * (12 * 768**2 + 13 * 768) + 2 * 768
    assert f"# small-model\n\nA GPT-2-family language model with {numbers:,} parameters" in card
    for row in (
        "| data | books/ |",
        "| data fingerprint | ffffffffffff |",
        "| steps | 7 |",
        "| tokens | 216 |",
        "| training loss | 3.2500 nats per token |",
        "| validation loss | 3.5000 nats per token |",
    ):
        assert row in card

"""What tests of several packages share: a small corpus and a small run."""

import os
import re
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.data.prepare import prepare

# What tests compile is for later tests, not for the user's cache.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/gptscale-tests-compiled-{os.getuid()}")

# Sums in one thread, here and in what tests start: several round differently, and tests run beside each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

signal.signal(signal.SIGINT, signal.default_int_handler)  # xdist's processes ignore it, and so would what they start

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "that",
    "one",
    "dog",
    "of",
    "all",
    "dogs",
    "run",
    "over",
    "some",
    "green",
    "hill",
    "to",
    "its",
    "old",
    "house",
]


def small_text(sentences: int = 1500) -> str:
    """Sentences in which the next word follows from the two before: easy to learn, not trivial."""
    a, b, words = 1, 2, []
    for _ in range(sentences * 8):
        a, b = b, (3 * a + 5 * b + 1) % len(WORDS)
        words.append(WORDS[b])
    return " ".join(words)


def small_values(folder: Path) -> dict[str, Any]:
    """A config of a tiny model of bytes, as plain values that a test can change."""
    return {
        "run": {"dir": str(folder / "run"), "seed": 11},
        "model": {
            "vocab_size": 257,
            "context_length": 32,
            "emb_dim": 32,
            "n_heads": 2,
            "n_layers": 2,
            "drop_rate": 0.1,
        },
        "data": {
            "dir": str(folder / "corpus"),
            "source": {"path": str(folder / "text.txt")},
            "tokenizer": "bytes",
            "split": "tail",
            "validation_fraction": 0.1,
        },
        "train": {
            "steps": 20,
            "tokens_per_step": 256,
            "micro_batch_sequences": 4,
            "precision": "fp32",
            "log_every_steps": 1,
        },
        "optim": {"lr_peak": 1e-2, "lr_floor": 1e-3, "warmup_steps": 1},
        "eval": {"every_steps": 10, "sequences": 16, "train_sequences": 8},
        "sample": {"prompts": ["the "], "max_new_tokens": 8},
        "checkpoint": {"every_steps": 10, "keep": 3},
    }


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """The plain values of a small run on a prepared corpus in tmp_path."""
    values = small_values(tmp_path)
    (tmp_path / "text.txt").write_text(small_text())
    prepare(parse_config(values), say=lambda line: None)
    return values


@pytest.fixture
def cfg(values: dict[str, Any]) -> Config:
    """A small run on a prepared corpus in tmp_path."""
    return parse_config(values)


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is forced to disk and what gets its name, in order: `sync NAME` and `name NAME`; a temporary file is NAME~."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("only Linux says which file a descriptor is")
    events: list[str] = []
    sync, replace, rename = os.fsync, Path.replace, Path.rename

    def note(verb: str, path: Path) -> None:
        name = re.sub(r"^\.(.+)\.[^.]+\.\d+\.[0-9a-f]{8}\.tmp$", r"\1~", path.name)
        if events[-1:] != [f"{verb} {name}"]:  # twice in a row is as good as once
            events.append(f"{verb} {name}")

    def noted_sync(handle: int) -> None:
        note("sync", Path(os.readlink(f"/proc/self/fd/{handle}")))
        sync(handle)

    def noted_move(move: Any) -> Any:
        def moved(path: Path, target: Path) -> Path:
            note("name", target)
            return move(path, target)

        return moved

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_move(replace))
    monkeypatch.setattr(Path, "rename", noted_move(rename))
    return events

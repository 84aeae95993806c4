"""What saving and loading take of a rank's memory, for a state that is eight times its largest tensor."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.dist.conftest import ENGINES, changed, launch, torchrun

MEASURER = str(Path(__file__).with_name("memory_worker.py"))

LARGEST = 8000 * 512 * 4
"""The token embedding in bytes (8,000 is a multiple of 64: no padding)."""

STATE = 3 * 4 * (8000 * 512 + 1024 * 512 + 2 * (12 * 512 * 512 + 13 * 512) + 2 * 512)
"""Weights and two moments in fp32: tokens, positions, two blocks, last norm."""

SLACK = LARGEST / 2
"""Allocators, Python's own objects, the parts of JSON."""


def measured(values: dict[str, Any], folder: Path, engine: str, **checkpoint: Any) -> list[dict[str, int]]:
    model = {"vocab_size": 8000, "emb_dim": 512, "n_heads": 8, "n_layers": 2, "context_length": 1024}
    cfg = changed(
        values,
        folder,
        model=model,
        train={"tokens_per_step": 2048, "micro_batch_sequences": 1, "steps": 6},
        eval={"sequences": 1, "train_sequences": None},
        checkpoint=checkpoint,
        sample={"prompts": []},
    )
    # without heaps: what is freed goes back at once, so that the peak is what was in use
    done = launch(cfg, torchrun(2), {**ENGINES[engine], "MALLOC_MMAP_THRESHOLD_": "65536"}, [MEASURER])
    assert done.returncode == 0, done.output
    return [json.loads((folder / f"memory-{rank}.json").read_text()) for rank in range(2)]


def test_the_state_is_eight_times_the_largest_tensor() -> None:
    assert pytest.approx(8, rel=0.02) == STATE / LARGEST


@pytest.mark.parametrize(
    "engine",
    [*(pytest.param(engine, marks=pytest.mark.long) for engine in ("ddp", "zero2", "fsdp2")), "zero3"],
)
def test_saving_beside_training_takes_a_copy_of_the_ranks_share_and_loading_one_tensor(
    plain_values: dict[str, Any], tmp_path: Path, engine: str
) -> None:
    for rank in measured(plain_values, tmp_path, engine):
        assert rank["share"] == pytest.approx(STATE / 2, rel=0.2)
        assert rank["first save"] <= rank["share"] + SLACK
        assert rank["second save"] <= SLACK  # into the same memory
        gathered = STATE / 3 if engine == "zero2" else 0  # DeepSpeed's own exchange of the weights
        assert rank["load"] <= LARGEST + gathered + SLACK


@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero3", marks=pytest.mark.long)])
def test_saving_while_training_waits_takes_no_copy(plain_values: dict[str, Any], tmp_path: Path, engine: str) -> None:
    for rank in measured(plain_values, tmp_path, engine, background=False):
        assert rank["first save"] <= SLACK
        assert rank["second save"] <= SLACK

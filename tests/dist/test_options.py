"""What a config can ask for beside the plain recipe, under the engines: the same numbers, or a clear no."""

from pathlib import Path
from typing import Any

import pytest

from tests.dist.conftest import ENGINES, Done, changed, forked, launch

pytestmark = pytest.mark.dist


def six_steps(
    values: dict[str, Any],
    folder: Path,
    engine: str,
    env: dict[str, str] | None = None,
    ranks: int = 2,
    **sections: dict[str, Any],
) -> Done:
    train = {"steps": 6, **sections.pop("train", {})}
    few = {"sample": {"prompts": []}, "eval": {"sequences": 4, "train_sequences": None, **sections.pop("eval", {})}}
    cfg = changed(values, folder / engine, train=train, **few, **sections)
    return launch(cfg, forked(0) if engine == "none" else forked(ranks), {**ENGINES.get(engine, {}), **(env or {})})


def losses(done: Done) -> list[float]:
    assert done.returncode == 0, done.output
    return done.log("train/loss") + done.log("train/grad_norm")


@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
def test_recomputed_activations_give_the_same_run(plain_values: dict[str, Any], tmp_path: Path, engine: str) -> None:
    plain = six_steps(plain_values, tmp_path, "none")
    recomputed = six_steps(plain_values, tmp_path, engine, train={"activation_checkpointing": True})
    assert losses(recomputed) == pytest.approx(losses(plain), rel=1e-5)


@pytest.mark.parametrize(
    ("engine", "env"),
    [
        ("ddp", {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}),
        ("zero2", {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_USE_CPU": "true"}),
        ("fsdp2", {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "FSDP_RESHARD_AFTER_FORWARD": "false"}),
    ],
)
def test_what_a_launch_may_say_besides_changes_no_number(
    plain_values: dict[str, Any], tmp_path: Path, engine: str, env: dict[str, str]
) -> None:
    plain = six_steps(plain_values, tmp_path, "none", eval={"every_steps": 2})
    told = six_steps(plain_values, tmp_path, engine, env, eval={"every_steps": 2})
    assert losses(told) == pytest.approx(losses(plain), rel=1e-5)
    assert "mismatch" not in told.output  # as Accelerate says of two numbers of micro-batches


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "engine",
    [
        "ddp",
        pytest.param("zero1", marks=LONG),
        pytest.param("zero2", marks=LONG),
        pytest.param("zero3", marks=LONG),
        pytest.param("fsdp2", marks=LONG),
        pytest.param("hsdp", marks=LONG),
    ],
)
def test_a_compiled_run_gives_the_same_numbers(plain_values: dict[str, Any], tmp_path: Path, engine: str) -> None:
    still = {"model": {"drop_rate": 0.0, "n_layers": 1}}  # compiled masks are drawn in another order
    plain = six_steps(plain_values, tmp_path, "none", **still)
    ranks = 4 if engine == "hsdp" else 2
    compiled = six_steps(plain_values, tmp_path, engine, ranks=ranks, train={"compile": True}, **still)
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)

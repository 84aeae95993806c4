"""A checkpoint of any engine goes on under any other, with any number of ranks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptscale.checkpoint.layout import read_manifest, step_dir
from gptscale.config.schema import Config
from gptscale.tracking.provenance import recorded_starts
from gptscale.weights.files import open_tensors
from tests.dist.conftest import ENGINES, OFFLOAD, changed, forked, launch
from tests.dist.crossing_worker import STEPS
from tests.dist.worker import state_hash

CROSSER = str(Path(__file__).with_name("crossing_worker.py"))

SAVED_AT = 4

WORLDS = [("none", 1), ("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero3", 3), ("fsdp2", 2), ("hsdp", 4)]
INTO = [*WORLDS, pytest.param("zero3", 2, marks=pytest.mark.long)]


def started(cfg: Config, engine: str, world: int, what: list[str] | None = None, **env: str) -> None:
    launcher = forked(0) if engine == "none" else forked(world)
    done = launch(cfg, launcher, {**ENGINES.get(engine, {}), **env}, what)
    assert done.returncode == 0, done.output


@pytest.fixture(scope="module")
def source(plain_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """A run that was saved at step 4 and trained for 10 more."""
    known: dict[tuple[str, int, str], Config] = {}

    def get(engine: str, world: int, precision: str) -> Config:
        if (engine, world, precision) not in known:
            cfg = changed(
                plain_values,
                tmp_path_factory.mktemp(f"{engine}-{world}-{precision}"),
                train={"steps": SAVED_AT + STEPS, "precision": precision},
                checkpoint={"every_steps": SAVED_AT},
                eval={"sequences": 8, "train_sequences": None},
                sample={"prompts": []},
            )
            started(cfg, engine, world)
            known[engine, world, precision] = cfg
        return known[engine, world, precision]

    return get


@pytest.fixture(scope="module")
def crossed(
    plain_values: dict[str, Any], source: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, Any]]:
    """What a fresh process group under an engine makes of checkpoints, by checkpoint; its own comes first."""
    known: dict[tuple[str, int, str], dict[str, Any]] = {}

    def get(engine: str, world: int, precision: str) -> dict[str, Any]:
        if (engine, world, precision) not in known:
            others = WORLDS if precision == "fp32" else []
            order = [(engine, world), *(other for other in others if other != (engine, world))]
            paths = [str(step_dir(source(*which, precision).run.dir, SAVED_AT)) for which in order]
            folder = tmp_path_factory.mktemp(f"into-{engine}-{world}-{precision}")
            own = source(engine, world, precision)
            cfg = own.model_copy(update={"run": own.run.model_copy(update={"dir": folder / "run"})})
            started(cfg, engine, world, [CROSSER], SOURCES=json.dumps(paths))
            known[engine, world, precision] = json.loads((folder / "crossing.json").read_text())
        return known[engine, world, precision]

    return get


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.long)])
@pytest.mark.parametrize(("engine", "world"), INTO)
def test_the_same_engine_goes_on_bit_for_bit(
    source: Callable[..., Config], crossed: Callable[..., dict[str, Any]], engine: str, world: int, precision: str
) -> None:
    cfg = source(engine, world, precision)
    assert cfg.model.drop_rate > 0
    found = crossed(engine, world, precision)[str(step_dir(cfg.run.dir, SAVED_AT))]
    assert found["losses"] == losses(cfg)[SAVED_AT:]


@pytest.mark.parametrize("engine", ["zero2", pytest.param("zero3", marks=pytest.mark.long)])
def test_a_run_with_its_moments_in_cpu_memory_goes_on_bit_for_bit(
    plain_values: dict[str, Any], tmp_path: Path, engine: str
) -> None:
    whole, before = (offloaded(plain_values, tmp_path / str(steps), engine, steps) for steps in (4, 2))
    shutil.copytree(before.run.dir, tmp_path / "after" / "run")
    after = offloaded(plain_values, tmp_path / "after", engine, 4)
    assert [start["from_step"] for start in recorded_starts(after.run.dir)] == [0, 2]
    assert losses(after) == losses(whole)


def offloaded(values: dict[str, Any], folder: Path, engine: str, steps: int) -> Config:
    cfg = changed(
        values,
        folder,
        train={"steps": steps},
        optim={"decay_steps": 4, "warmup_steps": 1},
        checkpoint={"every_steps": 2},
        eval={"sequences": 4, "train_sequences": None},
        sample={"prompts": []},
    )
    started(cfg, engine, 2, **OFFLOAD)
    return cfg


@pytest.mark.parametrize(("engine", "world"), INTO)
@pytest.mark.parametrize(("from_engine", "from_world"), WORLDS)
def test_weights_and_moments_come_over_bit_for_bit_and_the_run_goes_on(
    source: Callable[..., Config],
    crossed: Callable[..., dict[str, Any]],
    from_engine: str,
    from_world: int,
    engine: str,
    world: int,
) -> None:
    before = source(from_engine, from_world, "fp32")
    path = step_dir(before.run.dir, SAVED_AT)
    found = crossed(engine, world, "fp32")[str(path)]
    assert found["state"] == state_hash(saved_state(path))
    assert found["losses"] == pytest.approx(losses(before)[SAVED_AT:], rel=1e-5)


def losses(cfg: Config) -> list[float]:
    records = map(json.loads, (cfg.run.dir / "log.jsonl").read_text().splitlines())
    return [record["train/loss"] for record in records if "train/loss" in record]


def saved_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors put together, by kind/name."""
    state = {}
    for name, record in read_manifest(checkpoint).parameters.items():
        for kind in record.kinds:
            pieces = []
            for r in record.ranges:
                with open_tensors(checkpoint / r.file) as reader:
                    pieces.extend(reader.pieces(f"{kind}/{name}@{r.start}"))
            state[f"{kind}/{name}"] = torch.cat(pieces)
    return state

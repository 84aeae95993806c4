"""What an engine sends in a step, and what it keeps on a rank, against the formulas.

Both are in units of the model: 1 is a tensor of 4 bytes for each parameter. On a ring an all-reduce moves 2 (n-1)/n of
its tensor through every rank, a reduce, reduce-scatter or all-gather (n-1)/n; the factor (n-1)/n is left out, so they
count 2 and 1. Formulas: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", sections 5 (memory) and 7 (communication).
"""

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.dist.conftest import ENGINES, Done, changed, launch, torchrun

pytestmark = pytest.mark.dist

WORKER = str(Path(__file__).with_name("cost_worker.py"))

# Width 160, 4 blocks of 12 w^2 + 13 w, tables of 320 (257 bytes and padding) and 32 rows, a last norm of 2 w
PARAMETERS = 4 * (12 * 160**2 + 13 * 160) + (320 + 32) * 160 + 2 * 160

# Micro-batches of a step: four where the formulas hold for any number of them.
RUNS = {"ddp": 4, "zero1": 4, "zero2": 1, "zero3": 1, "fsdp2": 4}

RING = {"allreduce_": 2, "reduce_": 1, "_reduce_scatter_base_": 1, "_allgather_base_": 1}

# What 2 ranks send together over Gloo: its reduce-scatter is an all-reduce; its reduce is a reduce-scatter (1 in all)
# and then a half that goes to the root.
GLOO = {"allreduce_": 2, "reduce_": 1.5, "_reduce_scatter_base_": 2, "_allgather_base_": 1}

Costs = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def costs(plain_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Costs:
    """What the ranks of a run wrote down; each run is made once."""
    known: dict[str, Done] = {}

    def get(name: str) -> dict[str, Any]:
        if name not in known:
            known[name] = trained(plain_values, tmp_path_factory.mktemp(name), name, RUNS[name])
        done = known[name]
        assert done.returncode == 0, done.output
        assert f"micro-batches of 1 sequences, fp32, engine {name}" in done.output
        first, second = (json.loads((done.cfg.run.dir.parent / f"cost-{rank}.json").read_text()) for rank in range(2))
        assert first["collectives"] == second["collectives"]
        return first

    return get


def trained(values: dict[str, Any], folder: Path, engine: str, accumulation: int, world: int = 2, **env: str) -> Done:
    """Three steps of 1.3 M parameters on ranks that have a network for themselves, if the system grants one."""
    cfg = changed(
        values,
        folder,
        model={"emb_dim": 160, "n_heads": 4, "n_layers": 4},
        train={"steps": 3, "tokens_per_step": world * accumulation * 32, "micro_batch_sequences": 1},
        optim={"warmup_steps": 1},
        eval={"sequences": 1, "train_sequences": None},
        sample={"prompts": []},
        checkpoint={"every_steps": None},
    )
    return launch(cfg, [*own_network(), *torchrun(world)], {**ENGINES[engine], **env}, [WORKER])


@cache
def own_network() -> list[str]:
    """The words before a command that give it a loopback interface of its own; none where that is not allowed."""
    inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    for words in (["unshare", "--net", *inside], ["unshare", "--map-root-user", "--net", *inside]):
        try:
            if subprocess.run([*words, "true"], capture_output=True).returncode == 0:
                return words
        except FileNotFoundError:
            break
    return []


def elements(phases: list[dict[str, int]]) -> dict[str, float]:
    """By kind of collective, in units of the model; votes and norms, which are no part of it, left out."""
    total = sum((Counter(phase) for phase in phases), Counter())
    return {kind.split("::")[1]: n / PARAMETERS for kind, n in total.items() if n > 1000}


def volume(phases: list[dict[str, int]], price: dict[str, float]) -> float:
    return sum(n * price[kind] for kind, n in elements(phases).items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddp", 2),  # gradients are all-reduced
        ("zero1", 1 + 1),  # gradients are reduced to their owners, weights gathered
        ("zero2", 1 + 1),
        ("zero3", 2 + 1),  # weights are gathered for the forward and the backward pass, gradients reduce-scattered
        ("fsdp2", 4 * 2 + 1),  # as ZeRO-3, but gradients once for 4 micro-batches
    ],
)
def test_a_step_sends_what_the_formula_says(costs: Costs, name: str, expected: float) -> None:
    assert volume(costs(name)["collectives"], RING) == pytest.approx(expected, rel=0.05)


def test_fsdp2_sends_three_times_the_model_in_a_micro_batch_that_ends_a_step(costs: Costs) -> None:
    # 2 gathers and a reduce-scatter, but the tables and the last norm, 4 % of this model, stay gathered: 2.956
    last = costs("fsdp2")["collectives"][3]
    assert volume([last], RING) == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("name", ["ddp", "zero1"])
def test_nothing_is_sent_before_the_last_micro_batch(costs: Costs, name: str) -> None:
    phases = costs(name)["collectives"]
    assert len(phases) == 4 + 1
    assert elements(phases[:3]) == {}
    assert elements(phases[3:4])


def test_fsdp2_sends_weights_for_every_micro_batch_but_gradients_only_in_the_last(costs: Costs) -> None:
    *early, last, update = costs("fsdp2")["collectives"]
    assert [set(elements([phase])) for phase in early] == [{"_allgather_base_"}] * 3
    assert elements([last])["_reduce_scatter_base_"] == pytest.approx(1, rel=0.01)
    assert elements([update]) == {}


def test_fsdp2_gathers_weights_once_where_the_launch_wants_them_kept(
    plain_values: dict[str, Any], tmp_path: Path
) -> None:
    done = trained(plain_values, tmp_path, "fsdp2", 2, FSDP_RESHARD_AFTER_FORWARD="false")
    assert done.returncode == 0, done.output
    early, *_ = json.loads((tmp_path / "cost-0.json").read_text())["collectives"]
    assert elements([early]) == pytest.approx({"_allgather_base_": 1}, rel=0.05)  # and not again for the backward pass


@pytest.mark.parametrize("name", RUNS)
def test_the_bytes_on_the_wire_are_those_of_the_counted_collectives(costs: Costs, name: str) -> None:
    if not own_network():
        pytest.skip("needs a network namespace: root or user namespaces, with unshare and ip")
    found = costs(name)
    assert found["wire"] == pytest.approx(4 * PARAMETERS * volume(found["collectives"], GLOO), rel=0.05)


@pytest.mark.parametrize(
    ("name", "weights", "masters", "moments", "gradients"),
    [
        # fp32, where an engine needs no masters beside its weights: 4 + 4 + 8 bytes a parameter
        ("ddp", 1, 0, 2, 1),
        ("fsdp2", 1 / 2, 0, 2 / 2, 1 / 2),
        # DeepSpeed keeps a rank's share once more, as masters, also where the weights are fp32
        ("zero1", 1, 1 / 2, 2 / 2, 1 / 2),
        ("zero2", 1, 1 / 2, 2 / 2, 1 / 2),
        ("zero3", 1 / 2, 1 / 2, 2 / 2, 1 / 2),
    ],
)
def test_a_rank_keeps_what_the_formula_says_when_it_updates(
    costs: Costs, name: str, weights: float, masters: float, moments: float, gradients: float
) -> None:
    found = {kind: n / 4 / PARAMETERS for kind, n in costs(name)["kept"][-1].items()}
    bucket = 500_000 / PARAMETERS if name.startswith("zero") else 0  # does not grow with the model
    assert found.pop("other") <= bucket + 0.02
    expected = {"weights": weights, "masters": masters, "moments": moments, "gradients": gradients}
    assert found == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("name", ["ddp", "zero1", "fsdp2"])
def test_gradients_that_wait_for_the_last_micro_batch_are_kept_whole(costs: Costs, name: str) -> None:
    buckets = {"ddp": 0, "zero1": 500_000 / PARAMETERS, "fsdp2": 0}  # DDP's are the gradients
    for kept in costs(name)["kept"][:3]:
        assert kept["gradients"] == pytest.approx(4 * PARAMETERS, rel=0.1)
        assert kept["other"] == pytest.approx(4 * PARAMETERS * buckets[name], abs=0.02 * 4 * PARAMETERS)

"""Machines with a copy of the state each: what goes between ranks, and how long a rank waits for one that is gone."""

import json
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gptscale.checkpoint.layout import step_dir
from gptscale.config.schema import ModelConfig, OptimizerConfig
from gptscale.errors import ConfigError
from gptscale.model.gpt import GPTModel
from gptscale.runtime import fsdp2, ranks
from gptscale.runtime.distributed import start_engine
from gptscale.training.optimizer import build_optimizer
from tests.dist.conftest import ENGINES, changed, forked, launch
from tests.dist.test_cost import PARAMETERS, elements, trained

pytestmark = pytest.mark.dist


def test_weights_go_within_a_machine_and_a_shard_of_the_gradients_between_them(
    plain_values: dict[str, Any], tmp_path: Path
) -> None:
    done = trained(plain_values, tmp_path, "hsdp", 4, world=4)
    assert done.returncode == 0, done.output
    for rank in range(4):
        found = json.loads((tmp_path / f"cost-{rank}.json").read_text())
        *early, last, update = found["collectives"]
        # in units of the model: the tables and the last norm, 4 % of it, stay gathered from forward to backward
        assert [elements([phase]) for phase in early] == [pytest.approx({"_allgather_base_": 2}, rel=0.05)] * 3
        assert elements([last]) == pytest.approx(
            {"_allgather_base_": 2, "_reduce_scatter_base_": 1, "allreduce_": 1 / 2}, rel=0.05
        )
        assert elements([update]) == {}
        kept = {kind: n / 4 / PARAMETERS for kind, n in found["kept"][-1].items()}
        assert kept.pop("other") < 0.02
        assert kept == pytest.approx({"weights": 1 / 2, "masters": 0, "moments": 1, "gradients": 1 / 2}, rel=0.1)


def test_every_rank_saves_a_part_of_its_own(plain_values: dict[str, Any], tmp_path: Path) -> None:
    cfg = changed(plain_values, tmp_path, train={"steps": 2}, optim={"warmup_steps": 1}, sample={"prompts": []})
    done = launch(cfg, forked(4), ENGINES["hsdp"])
    assert done.returncode == 0, done.output
    folder = step_dir(cfg.run.dir, 2)
    sizes = [path.stat().st_size for path in folder.glob("part-*.safetensors")]
    assert len(sizes) == 4
    assert max(sizes) < 1.2 * min(sizes)


def on_two_ranks(work: Callable[[int, int], None]) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(and_leave, args=(port, work), nprocs=2)


def and_leave(rank: int, port: int, work: Callable[[int, int], None]) -> None:
    """Without the interpreter's clean-up, which can abort in Gloo's threads."""
    work(rank, port)
    os._exit(0)


def meet(rank: int, port: int, **more: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank), **more}
    ranks.join()


@pytest.mark.long
@pytest.mark.parametrize("engine", ["hsdp", "zero1", "zero3"])
def test_a_rank_waits_for_its_own_groups_no_longer_than_for_all(engine: str) -> None:
    on_two_ranks(partial(wait_for_one_that_sleeps, engine))


def test_copies_stay_the_same_though_each_has_added_its_norm_in_another_order() -> None:
    on_two_ranks(update_by_norms_of_their_own)


def update_by_norms_of_their_own(rank: int, port: int) -> None:
    meet(rank, port, **ENGINES["hsdp"])
    total_norm = fsdp2.get_total_norm
    fsdp2.get_total_norm = lambda tensors: total_norm(tensors) * (1 + rank / 100)
    cfg = ModelConfig(vocab_size=16, context_length=4, emb_dim=8, n_heads=2, n_layers=1)
    engine, model = start_engine("fp32", 1), GPTModel(cfg, seed=1)
    assert engine.name == "hsdp"
    engine.prepare(model, build_optimizer(model, OptimizerConfig(eps=1.0), engine.device), compile_model=False)
    tokens = torch.arange(4)[None] + rank
    norms = []
    for _ in range(2):
        engine.set_lr(0.1)
        with engine.accumulate():
            engine.backward(engine.model(tokens, tokens))
        norms.append(float(engine.update(0.1)))
    assert min(norms) > 0.1  # clipped
    weights = torch.cat([f.tensors["weight"] for f in engine.weight_fragments()])
    first, second = engine.gather(weights)
    assert torch.equal(first, second)


def test_machines_with_unequal_numbers_of_ranks_are_told_by_all() -> None:
    on_two_ranks(start_on_unequal_machines)


def start_on_unequal_machines(rank: int, port: int) -> None:
    env = {**ENGINES["hsdp"], "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "1", "LOCAL_WORLD_SIZE": str(rank + 1)}
    meet(rank, port, **env)
    with pytest.raises(
        ConfigError, match="machines have from 1 to 2 ranks, .*; set dp_shard_size of parallelism_config"
    ):
        start_engine("fp32", 1)


def wait_for_one_that_sleeps(engine: str, rank: int, port: int) -> None:
    meet(rank, port, **ENGINES[engine])
    group = own_group(engine)
    if rank == 1:
        time.sleep(8)  # the wait of the other
        return
    before = time.monotonic()
    with pytest.raises(RuntimeError, match="(?i)timed out|timeout"):
        dist.all_reduce(torch.ones(1), group=group)
    assert 2 < time.monotonic() - before < 7


def own_group(kind: str) -> dist.ProcessGroup:
    """A group that is not torch's first one, made by who waits 3 s."""
    if kind == "hsdp":
        os.environ["GPTSCALE_COLLECTIVE_TIMEOUT_S"] = "3"
        mesh = ranks.grid("cpu", 1)
        assert [mesh.get_group(axis).size() for axis in (0, 1)] == [2, 1]
        return mesh.get_group(0)
    cfg = ModelConfig(vocab_size=16, context_length=4, emb_dim=8, n_heads=2, n_layers=1)
    engine, model = start_engine("fp32", 1), GPTModel(cfg, seed=1)
    os.environ["GPTSCALE_COLLECTIVE_TIMEOUT_S"] = "3"
    engine.prepare(model, build_optimizer(model, OptimizerConfig(), engine.device), compile_model=False)
    engine.gather(None)  # so that both begin to wait together
    group = engine.model.optimizer.dp_process_group
    assert group is not dist.group.WORLD
    return group  # type: ignore[no-any-return]

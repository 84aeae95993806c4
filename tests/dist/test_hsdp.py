"""Machines with a copy of the state each: what goes between ranks, and how long a rank waits for one that is gone."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gptscale.checkpoint.layout import step_dir
from gptscale.runtime import ranks
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


def test_a_rank_waits_for_its_own_groups_no_longer_than_for_all() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(wait_for_one_that_sleeps, args=(port,), nprocs=2)


def wait_for_one_that_sleeps(rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    ranks.join()
    os.environ["GPTSCALE_COLLECTIVE_TIMEOUT_S"] = "3"
    mesh = ranks.grid("cpu", 1)
    assert [mesh.get_group(axis).size() for axis in (0, 1)] == [2, 1]
    if rank == 1:
        time.sleep(8)  # the wait of the other
        return
    before = time.monotonic()
    with pytest.raises(RuntimeError, match="(?i)timed out|timeout"):
        dist.all_reduce(torch.ones(1), group=mesh.get_group(0))
    assert 2 < time.monotonic() - before < 7

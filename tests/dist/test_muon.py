"""Muon where the engine cuts matrices: the numbers of one process, and a momentum that goes anywhere."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from gptscale.checkpoint.layout import read_manifest, step_dir
from gptscale.runtime import muon
from gptscale.runtime.fragments import Piece
from gptscale.runtime.muon import Muon
from gptscale.runtime.muon_exchange import _owners
from gptscale.runtime.row_muon import RowMuon
from gptscale.runtime.zero_muon import ZeroMuon
from tests.dist.conftest import ENGINES, OFFLOAD, Done, changed, forked, launch
from tests.dist.test_crossing import saved_state
from tests.dist.test_options import losses, six_steps
from tests.dist.worker import state_hash

pytestmark = pytest.mark.dist

MUON = {"optim": {"name": "muon"}}

# Muon may orthogonalize in bf16, so other orders of summation show at 1e-3 of an update, far below the loss's change.
CLOSE = 5e-4


@pytest.fixture(scope="module")
def one_process(plain_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses and gradient norms of six steps with Muon, and a look that AdamW's are others."""
    folder = tmp_path_factory.mktemp("muon")
    expected = losses(six_steps(plain_values, folder, "none", **MUON))
    assert expected != pytest.approx(losses(six_steps(plain_values, folder / "adamw", "none")), rel=CLOSE)
    return expected


@pytest.mark.parametrize(
    "engine",
    [*(pytest.param(engine, marks=pytest.mark.long) for engine in ("ddp", "zero1")), "zero2", "zero3", "fsdp2", "hsdp"],
)
def test_muon_gives_the_run_of_one_process(
    plain_values: dict[str, Any], tmp_path: Path, one_process: list[float], engine: str
) -> None:
    done = six_steps(plain_values, tmp_path, engine, ranks=4 if engine == "hsdp" else 2, **MUON)
    assert losses(done) == pytest.approx(one_process, rel=CLOSE)
    if engine in ("fsdp2", "hsdp"):
        assert done.watched["optimizer"] == "RowMuon"  # torch's own would have the same numbers, and many exchanges


@pytest.mark.parametrize("engine", [pytest.param("zero2", marks=pytest.mark.long), "zero3"])
def test_muon_with_its_momentum_in_cpu_memory_gives_the_same(
    plain_values: dict[str, Any], tmp_path: Path, one_process: list[float], engine: str
) -> None:
    done = six_steps(plain_values, tmp_path, engine, env=OFFLOAD, **MUON)
    assert losses(done) == pytest.approx(one_process, rel=CLOSE)


def test_a_run_with_muon_goes_from_engine_to_engine(plain_values: dict[str, Any], tmp_path: Path) -> None:
    whole = two_more_steps(plain_values, tmp_path / "whole", "none", 10)
    before = two_more_steps(plain_values, tmp_path / "2", "none", 2)
    for steps, engine in ((4, "zero2"), (6, "zero3"), (8, "fsdp2"), (10, "zero1")):
        folder = tmp_path / str(steps)
        shutil.copytree(before.cfg.run.dir, folder / "run")
        last = step_dir(before.cfg.run.dir, steps - 2)
        before = two_more_steps(plain_values, folder, engine, steps)
        assert before.watched["start"] == state_hash(saved_state(last)), engine
    kinds = {name: record.kinds for name, record in read_manifest(step_dir(before.cfg.run.dir, 10)).parameters.items()}
    assert sorted(kinds["blocks.0.ff.fc.weight"]) == ["momentum_buffer", "weight"]
    assert sorted(kinds["tok_emb.weight"]) == ["exp_avg", "exp_avg_sq", "weight"]
    assert losses(before) == pytest.approx(losses(whole), rel=CLOSE)


def two_more_steps(values: dict[str, Any], folder: Path, engine: str, steps: int) -> Done:
    cfg = changed(
        values,
        folder,
        train={"steps": steps},
        optim={"name": "muon", "decay_steps": 10, "warmup_steps": 1},
        sample={"prompts": []},
        eval={"sequences": 4, "train_sequences": None},
        checkpoint={"every_steps": 2},
    )
    done = launch(cfg, forked(0) if engine == "none" else forked(2), ENGINES.get(engine, {}))
    assert done.returncode == 0, done.output
    return done


@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
def test_a_gradient_that_is_not_finite_moves_neither_weights_nor_momentum(
    plain_values: dict[str, Any], tmp_path: Path, engine: str
) -> None:
    done = six_steps(plain_values, tmp_path, engine, env={"FAULT": "nan:1"}, **MUON)
    assert done.log("health/skipped_steps") == [0, 1, 0, 0, 0, 0]
    for rank in range(2):
        folder = done.cfg.run.dir.parent
        assert (folder / f"before-nan-{rank}").read_text() == (folder / f"after-nan-{rank}").read_text()


def test_matrices_that_all_ranks_hold_are_shared_out_among_them() -> None:
    held = [[Piece(str(n), (4, 8), 16 * rank, 16, 0, 16 * n) for n in range(6)] for rank in range(2)]
    owners = list(_owners(held).values())
    assert (owners.count(0), owners.count(1)) == (3, 3)


def test_the_costliest_matrices_are_shared_out_first_and_those_of_one_rank_before_all() -> None:
    def piece(name: str, rows: int = 4) -> Piece:
        return Piece(name, (rows, 4), 0, 1, 0, 0)

    both = [piece("0"), piece("1"), piece("2", rows=8)]  # of cost 64, 64 and 128
    assert _owners([both, both]) == {"2": 0, "0": 1, "1": 1}
    assert _owners([[piece("0"), piece("1")], [piece("0")]]) == {"1": 0, "0": 1}


# Of 3 ranks: the ends of the ranges of a concatenation, so that one matrix is cut twice, some are whole, and
# a rank holds only a part of one; and every matrix cut by itself, the last range shorter. (12, 4) is three matrices.
SHAPES = [(6, 10), (12, 4), (8, 8), (5, 20), (16, 3)]
ENDS = [20, 55, 320]


@pytest.mark.parametrize(
    ("cut", "has_bf16"),
    [
        ("concatenation", True),
        pytest.param("each", False, marks=pytest.mark.long),
        pytest.param("concatenation", False, marks=pytest.mark.long),
        pytest.param("each", True, marks=pytest.mark.long),
    ],
)
def test_pieces_are_updated_bit_for_bit_as_whole_matrices_are(cut: str, has_bf16: bool) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(updates_as_torch, args=(cut, has_bf16, port), nprocs=3)


def updates_as_torch(rank: int, cut: str, has_bf16: bool, port: int) -> None:
    """Three steps on this rank's pieces, against torch's Muon, or ours in fp32, and AdamW on everything in parts."""
    muon.computes_bf16 = lambda device: has_bf16
    os.environ |= {"WORLD_SIZE": "3", "RANK": str(rank)}
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=3)
    generator = torch.Generator().manual_seed(1)
    whole = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    settings = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
    parts = [alone(p) for p in whole]
    reference = (torch.optim.Muon if has_bf16 else Muon)([part for of_one in parts for part in of_one], **settings)
    bias, rest = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    adamw = torch.optim.AdamW([bias], lr=0.1)
    pieces = list(of_concatenation(rank) if cut == "concatenation" else of_each(rank))
    flat = torch.nn.Parameter(taken(whole, pieces))
    groups = [{**reference.param_groups[0], "params": [flat]}, {**adamw.param_groups[0], "params": [rest]}]
    ours = ZeroMuon(groups, torch.device("cpu"))
    ours.place([flat], pieces)
    for _ in range(3):
        gradients = [torch.randn(shape, generator=generator) for shape in SHAPES]
        for of_one, gradient in zip(parts, gradients, strict=True):
            for part, its in zip(of_one, gradient.chunk(len(of_one)), strict=True):
                part.grad = its.clone()
        flat.grad = taken(gradients, pieces)
        bias.grad, rest.grad = torch.full((5,), 0.1), torch.full((5,), 0.1)
        reference.step()
        adamw.step()
        ours.step()
    assert torch.equal(rest, bias)
    assert torch.equal(flat, taken(whole, pieces))
    momenta = [torch.cat([reference.state[part]["momentum_buffer"] for part in of_one]) for of_one in parts]
    assert torch.equal(ours.state[flat]["momentum_buffer"], taken(momenta, pieces))
    dist.destroy_process_group()


def test_a_step_is_that_of_the_groups_that_are_shown() -> None:
    shown, hidden = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    shown.grad, hidden.grad = torch.ones(5), torch.ones(5)  # as under offload, where DeepSpeed keeps all of them
    adamw = torch.optim.AdamW([{"params": [shown]}, {"params": [hidden]}])
    ours = ZeroMuon(adamw.param_groups, torch.device("cpu"))
    ours.param_groups = ours.param_groups[:1]
    ours.step()
    assert not torch.equal(shown, torch.ones(5))
    assert torch.equal(hidden, torch.ones(5))


def test_rows_are_updated_bit_for_bit_with_two_exchanges_for_all_matrices() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(rows_as_torch, args=(port,), nprocs=2)


def rows_as_torch(rank: int, port: int) -> None:
    """Two steps on this rank's rows under FSDP2, against ours in fp32 on the whole, and what was exchanged."""
    muon.computes_bf16 = lambda device: False
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank)}
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    generator = torch.Generator().manual_seed(1)
    whole = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in [*SHAPES, (1, 5)]]
    model = torch.nn.ParameterList([torch.nn.Parameter(p.detach().clone()) for p in whole])
    settings = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
    reference = Muon(whole, **settings)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    bias = torch.nn.Parameter(torch.ones(5))
    adamw = torch.optim.AdamW([bias], lr=0.1)
    groups = [{**reference.param_groups[0], "params": list(model)}, {**adamw.param_groups[0], "params": [bias]}]
    ours = RowMuon(groups, torch.device("cpu"))
    for _ in range(2):
        for p, mine in zip(whole, model, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            mine.grad = distribute_tensor(p.grad, mine.device_mesh, mine.placements)
        reference.step()
        with CommDebugMode() as exchanged:
            ours.step()
        assert exchanged.get_total_counts() == 2, exchanged.get_comm_counts()
    for p, mine in zip(whole, model, strict=True):
        assert torch.equal(mine.full_tensor(), p)
    dist.destroy_process_group()


def alone(p: torch.nn.Parameter) -> list[torch.nn.Parameter]:
    """The matrices that lie over each other in one, each for itself in the same memory."""
    rows, columns = p.shape
    return [torch.nn.Parameter(part) for part in p.detach().chunk(3)] if rows == 3 * columns else [p]


def of_concatenation(rank: int) -> Iterator[Piece]:
    low, high = ([0, *ENDS][rank], ENDS[rank])
    first = 0
    for number, (rows, columns) in enumerate(SHAPES):
        start, stop = max(low - first, 0), min(high - first, rows * columns)
        if start < stop:
            yield Piece(str(number), (rows, columns), start, stop - start, 0, first + start - low)
        first += rows * columns


def of_each(rank: int) -> Iterator[Piece]:
    offset = 0
    for number, (rows, columns) in enumerate(SHAPES):
        part = -(-rows * columns // 3)
        start, stop = part * rank, min(part * (rank + 1), rows * columns)
        yield Piece(str(number), (rows, columns), start, stop - start, 0, offset)
        offset += stop - start


def taken(whole: list[Any], pieces: list[Piece]) -> torch.Tensor:
    return torch.cat([whole[int(p.name)].detach().view(-1)[p.start : p.start + p.numel] for p in pieces])

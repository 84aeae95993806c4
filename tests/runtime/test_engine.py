"""What the plain engine promises beside the steps that tests/train and tests/dist look at."""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.distributed as dist

from gptscale.errors import ConfigError, TrainingError
from gptscale.runtime import interfaces
from gptscale.runtime.distributed import start_engine
from gptscale.runtime.engine import Engine, EngineSettings
from gptscale.runtime.fragments import materialize_state
from gptscale.runtime.fsdp2 import Fsdp2Engine


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = start_engine("fp32", 1)
    yield engine
    engine.close()


def test_a_single_process_that_a_shell_calls_rank_0_looks_for_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    engine = start_engine("fp32", 1)
    assert (engine.world, dist.is_initialized(), os.environ["LOCAL_RANK"]) == (1, False, "0")
    engine.close()


def test_fp16s_loss_scale_goes_through_a_ledger() -> None:
    engine = Engine(EngineSettings("fp16", 1))
    assert engine._loss_scale is not None
    engine._loss_scale.update(torch.tensor(torch.inf))
    ledger = json.loads(json.dumps(engine.scaler_state()))
    assert ledger == {"scale": 2.0**15, "steps": 0}
    engine.close()

    another = Engine(EngineSettings("fp16", 1))
    another.load_scaler_state(ledger)
    assert another.scaler_state() == ledger
    another.close()


def test_fp16_begins_a_loss_scale_where_a_run_in_another_precision_left_none() -> None:
    engine = Engine(EngineSettings("fp16", 1))
    engine.load_scaler_state({})
    assert engine.scaler_state() == {"scale": 2.0**16, "steps": 0}
    engine.close()


def test_an_update_drops_the_gradients(engine: Engine) -> None:
    model = torch.nn.Linear(2, 1)
    engine.prepare(model, torch.optim.AdamW(model.parameters(), fused=True), compile_model=False)
    with engine.accumulate():
        engine.backward(engine.model(torch.ones(1, 2)).sum())
    engine.update(None)
    assert [p.grad for p in model.parameters()] == [None, None]  # and with them their memory


def test_other_precisions_have_no_loss_scale(engine: Engine) -> None:
    assert engine.scaler_state() == {}
    engine.load_scaler_state({})


def test_a_state_is_made_without_a_move_of_the_weights() -> None:
    weights = [torch.nn.Parameter(torch.ones(size)) for size in (2, 3)]
    optimizer = torch.optim.AdamW([{"params": weights[:1], "lr": 0.5}, {"params": weights[1:]}], lr=0.1, weight_decay=1)
    materialize_state(optimizer)
    assert [p.tolist() for p in weights] == [[1.0] * 2, [1.0] * 3]
    assert [optimizer.state[p]["exp_avg"].tolist() for p in weights] == [[0.0] * 2, [0.0] * 3]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    assert [p.grad for p in weights] == [None, None]


def test_training_goes_on_with_dropout_after_an_evaluation_without(engine: Engine) -> None:
    model = torch.nn.Dropout(0.5)
    model.weight = torch.nn.Parameter(torch.ones(1))
    engine.prepare(model, torch.optim.SGD([model.weight]), compile_model=False)
    with engine.evaluating():
        assert torch.equal(engine.model(torch.ones(99)), torch.ones(99))
    assert not torch.equal(engine.model(torch.ones(99)), torch.ones(99))


def test_precisions_that_need_another_launch_say_so() -> None:
    with pytest.raises(ConfigError, match=r"train.precision=bf16-sharded needs an engine that shards; .*zero\*.yaml"):
        start_engine("bf16-sharded", 1)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="train.precision=fp16 needs a CUDA device, and there is none"):
            start_engine("fp16", 1)


def test_a_launch_of_the_older_fsdp_is_told_which_one_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_VERSION", "1")  # as Accelerate says for a file without fsdp_version
    with pytest.raises(ConfigError, match="the launch asks for FSDP 1; set fsdp_version: 2"):
        Fsdp2Engine(EngineSettings("fp32", 1))


def test_a_reader_who_is_gone_ends_no_run(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, pipe = os.pipe()
    os.close(gone)
    with os.fdopen(pipe, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        engine.say("to nobody")
        with contextlib.suppress(BrokenPipeError):
            stream.close()


def test_a_world_that_accelerate_sees_otherwise_is_refused(engine: Engine) -> None:
    engine.world = 2
    with pytest.raises(TrainingError, match=r"the launcher started 2 processes, but Accelerate sees 1 and rank 0"):
        engine._check_world()


@pytest.mark.parametrize(("world", "refused", "cpu"), [("1", "", False), ("1", "true", True), ("2", "", True)])
def test_one_process_without_cuda_may_use_mps_but_ranks_need_gloo(
    monkeypatch: pytest.MonkeyPatch, world: str, refused: str, cpu: bool
) -> None:
    asked = {}

    class Noted:
        device = torch.device("cpu")
        process_index, num_processes = 0, int(world)

        def __init__(self, **settings: object) -> None:
            asked.update(settings)

    monkeypatch.setattr("gptscale.runtime.engine.Accelerator", Noted)
    monkeypatch.setattr("gptscale.runtime.ranks.has_cuda", lambda: False)
    monkeypatch.setattr("gptscale.runtime.ranks.agree", lambda work: work())
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("ACCELERATE_USE_CPU", refused)
    Engine(EngineSettings("fp32", 1))
    assert asked["cpu"] is cpu


@pytest.mark.parametrize(("world", "together", "given_back"), [(1, False, True), (2, True, True), (2, False, False)])
def test_a_rank_that_fails_alone_does_not_wait_for_its_device(
    monkeypatch: pytest.MonkeyPatch, world: int, together: bool, given_back: bool
) -> None:
    engine = start_engine("fp32", 1)
    engine.world = world
    calls: list[bool] = []
    monkeypatch.setattr(engine._accelerator, "free_memory", lambda: calls.append(True))
    engine.close(together=together)
    assert bool(calls) == given_back
    start_engine("fp32", 1).close()  # a next run can start


@pytest.mark.parametrize(
    ("told", "taken"),
    [
        ("lo", "lo"),
        ("=lo", "lo"),
        ("^docker", None),
        ("ib", None),
        ("", None),
        ("l", "lo"),
        ("=l", None),
        ("ib,eth", "eth0"),
        ("=lo,eth0", "lo"),
    ],
)
def test_gloo_takes_the_interface_that_nccl_was_told_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, told: str, taken: str | None
) -> None:
    known, down = [SimpleNamespace(family=socket.AF_INET)], [SimpleNamespace(family=socket.AF_PACKET)]
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"eth1": down, "lo": known, "eth0": known})
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", told)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    interfaces.let_gloo_follow_nccl()
    assert os.environ.get("GLOO_SOCKET_IFNAME") == taken


def test_a_launch_that_says_something_else_than_the_config_starts_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", "2.0")
    with pytest.raises(
        ConfigError, match=r"the launch says gradient_clipping=2.0, but optim.clip_norm is 1.0; leave it"
    ):
        Engine(EngineSettings("fp32", 1, clip_norm=1.0))


def test_a_world_that_accelerate_sees_otherwise_starts_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptscale.runtime.engine.launched_rank", lambda: 1)
    with pytest.raises(TrainingError, match=r"Accelerate sees 1 and rank 0 where this is rank 1; launch with one of"):
        Engine(EngineSettings("fp32", 1))
    monkeypatch.undo()
    start_engine("fp32", 1).close()  # a next run can start

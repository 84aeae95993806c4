"""Ranks that meet."""

import os
import resource
import sys
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from gptscale.errors import ConfigError, PeerError, RankError, TrainingError
from gptscale.runtime import ranks


def test_what_the_backend_prints_is_no_output_of_ours(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # a single process forms a group of its own for it
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(ranks, "_store", None)
    monkeypatch.setattr(ranks, "has_cuda", lambda: False)
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda *_, **__: os.write(1, b"[Gloo] Rank 0 is connected\n"))
    print("before")
    ranks.join()
    print("after")
    assert capfd.readouterr() == ("before\nafter\n", "[Gloo] Rank 0 is connected\n")


def test_ranks_meet_where_standard_output_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with ranks._stdout_on_stderr():
        pass


def test_ranks_that_do_not_know_where_to_meet_are_told_as_they_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setattr(ranks, "_meeting", None)
    with pytest.raises(ConfigError, match="MASTER_ADDR and MASTER_PORT do not say where they meet"):
        ranks.join()


def test_a_rank_on_a_gpu_takes_its_own_and_speaks_over_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(ranks, "_store", None)
    monkeypatch.setattr(ranks, "_words", None)
    monkeypatch.setattr(ranks, "has_cuda", lambda: True)
    monkeypatch.setattr(ranks, "_let_gloo_follow_nccl", lambda: done.append("an interface for Gloo"))
    monkeypatch.setattr(ranks.torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(ranks.torch.cuda, "set_device", done.append)
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda backend, **_: done.append(backend))
    monkeypatch.setattr(ranks.dist, "new_group", lambda backend, timeout: backend)
    ranks.join()
    assert done == [3, "an interface for Gloo", "nccl"]
    assert ranks._words == "gloo"


def test_a_single_process_raises_its_own_error() -> None:
    with pytest.raises(ZeroDivisionError):
        ranks.agree(lambda: 1 / 0)


@pytest.mark.parametrize("rank_0_tells", [True, False])
def test_an_error_is_told_by_rank_0_or_else_by_whoever_has_it(
    monkeypatch: pytest.MonkeyPatch, rank_0_tells: bool
) -> None:
    store, told = HashStore(), []
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(ranks, "_store", store)
    monkeypatch.setattr(ranks, "TELLING_S", 0.1)
    ranks_in_turn, before = [0, 1, 2] if rank_0_tells else [1, 2], time.monotonic()
    for rank in ranks_in_turn:
        monkeypatch.setenv("RANK", str(rank))
        ranks.tell_once(lambda rank=rank: told.append(rank))  # type: ignore[misc]
    assert told == ([0] if rank_0_tells else [1, 2])
    if rank_0_tells:
        assert time.monotonic() - before >= 0.1  # rank 0 ends after the others, which come later here
        store.wait([f"{ranks.HEARD}/all"], timedelta(seconds=1))  # which it need not wait for any longer


def test_of_ranks_that_have_not_met_rank_0_tells_and_the_others_let_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told, waited = [], []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(ranks, "_store", None)
    monkeypatch.setattr(ranks.time, "sleep", waited.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        ranks.tell_once(lambda rank=rank: told.append(rank))  # type: ignore[misc]
    assert (told, waited) == (["0"], [ranks.TELLING_S])


def test_a_rank_waits_for_the_others_before_it_parts_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks.dist, "barrier", lambda group: done.append("all are here"))
    monkeypatch.setattr(ranks.dist, "destroy_process_group", lambda: done.append("parted"))
    ranks.leave()
    assert done == ["all are here", "parted"]


def test_ranks_for_which_there_is_no_gpu_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "5")
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(ranks, "has_cuda", lambda: True)
    monkeypatch.setattr(ranks.torch.cuda, "device_count", lambda: 4)
    with pytest.raises(RankError, match="rank 5 is number 6 on its machine, where 4 GPUs can be used; start one rank"):
        ranks.join()


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ({"node0": "10.0.0.2"}, "eth-10.0.0.2"),
        ({"10.0.0.3": "10.0.0.1"}, "eth-10.0.0.1"),  # where all meet, node0 means the loopback too
        ({"node0": "10.0.0.2", "here": "10.9.9.9"}, None),  # Gloo finds its way by itself
        ({}, None),  # all on one machine
    ],
)
def test_gloo_goes_where_the_other_machines_are(
    monkeypatch: pytest.MonkeyPatch, ways: dict[str, str], expected: str | None
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setattr(ranks.socket, "gethostname", lambda: "here")
    monkeypatch.setattr(ranks, "address_towards", lambda host: ways.get(host, ""))
    monkeypatch.setattr(ranks, "interface_with", lambda address: f"eth-{address}" if address else None)
    store = HashStore()
    store.set(f"{ranks.ADDRESS}-1", "10.0.0.3" if ways else "")
    ranks._let_gloo_leave_the_machine(store)
    assert os.environ.get("GLOO_SOCKET_IFNAME") == expected


def test_nccl_waits_longer_than_gloo_which_can_say_what_it_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTSCALE_COLLECTIVE_TIMEOUT_S", "5")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert ranks.patience().total_seconds() == 65
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert ranks.patience().total_seconds() == 5


NCCL_SAYS = """NCCL error in: /NCCLUtils.cpp:77, unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27
ncclUnhandledCudaError: Call to CUDA function failed.
Last error:
Cuda failure """

CUDA_SAYS = """CUDA error: out of memory
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
"""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"), "Tried to allocate 3 GiB; take less"),
        (torch.AcceleratorError(CUDA_SAYS), "rank 0 ran out of memory: CUDA error: out of memory; take less"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "rank 0 ran out of memory: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`; take",
        ),
        (
            dist.DistBackendError(f"{NCCL_SAYS}2 'out of memory'"),
            "rank 0 ran out of memory: Cuda failure 2 'out of memory'; take less",
        ),
        (
            dist.DistBackendError(f"{NCCL_SAYS}1 'invalid argument'"),
            "rank 0 lost the other ranks (NCCL error in: /NCCLUtils.cpp:77, unhandled cuda error (run with "
            "NCCL_DEBUG=INFO for details), NCCL version 2.27: Cuda failure 1 'invalid argument'); if one of them was",
        ),
    ],
)
def test_what_cuda_and_nccl_say_is_told_in_one_line_with_its_cause(error: Exception, told: str) -> None:
    with pytest.raises(RankError) as raised, ranks.explaining("take less"):
        raise error
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("broken", [2, 3])
def test_of_ranks_that_lose_the_others_the_first_alone_says_so_and_names_who_does_not(
    monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "12")
    store = HashStore()
    monkeypatch.setattr(ranks, "_store", store)
    monkeypatch.setattr(ranks, "TELLING_S", 0.1)
    for rank in range(12):
        store.set(f"{ranks.HOST}-{rank}", f"node{rank // 4}")
    store.set(f"{ranks.LOST}-2", "yes")
    lost = [ranks._explained(RuntimeError("[gloo] Connection closed by peer"), "") for _ in range(broken)]
    assert [type(error) for error in lost] == [RankError, *[PeerError] * (broken - 1)]
    named = ", ".join(f"rank {rank} on node{rank // 4}" for rank in (1, 3, 4, 5, 6, 7, 8, 9))
    assert f"([gloo] Connection closed by peer); no word from {named} and 2 more; if one of them" in str(lost[0])


def test_ranks_that_agree_tell_each_other_words_only_where_one_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1024")
    voted: list[bool] = []
    said: list[object] = []

    def reduced(votes: torch.Tensor, op: object, group: object) -> None:
        voted.append(bool(votes[0]))

    monkeypatch.setattr(ranks.dist, "all_reduce", reduced)
    monkeypatch.setattr(ranks, "gather", lambda value: said.append(value) or [value])
    assert ranks.agree(lambda: 7) == 7
    assert (voted, said) == ([False], [])
    with pytest.raises(TrainingError, match="rank 0 failed with ValueError: no"):
        ranks.agree(lambda: (_ for _ in ()).throw(ValueError("no")))
    assert said == [("ValueError", "no")]


def test_a_process_that_may_not_be_connected_to_all_others_says_so_and_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1024")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(ranks, "has_cuda", lambda: False)
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, limit: limits.append(limit))
    monkeypatch.setattr(ranks, "check_meeting_point", lambda: (_ for _ in ()).throw(RankError("came so far")))
    with pytest.raises(RankError, match="came so far"):
        ranks.join()
    assert limits[-1][0] >= 2 * 1024  # a connection of the group and one of the store to each of 1,024
    limits.append((1024, 2048))
    with pytest.raises(RankError, match=r"rank 3 needs 2,048 connections .* than 2,048 files open; raise the limit on"):
        ranks.join()

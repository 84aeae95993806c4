"""Errors of several ranks, told once."""

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from gptscale.errors import PeerError, RankError
from gptscale.runtime import ranks, telling


@pytest.mark.parametrize("rank_0_tells", [True, False])
def test_an_error_is_told_by_rank_0_or_else_by_whoever_has_it(
    monkeypatch: pytest.MonkeyPatch, rank_0_tells: bool
) -> None:
    store, told = HashStore(), []
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(ranks, "store", store)
    monkeypatch.setattr(telling, "TELLING_S", 0.1)
    ranks_in_turn, before = [0, 1, 2] if rank_0_tells else [1, 2], time.monotonic()
    for rank in ranks_in_turn:
        monkeypatch.setenv("RANK", str(rank))
        telling.tell_once(lambda rank=rank: told.append(rank))  # type: ignore[misc]
    assert told == ([0] if rank_0_tells else [1, 2])
    if rank_0_tells:
        assert time.monotonic() - before >= 0.1  # rank 0 ends after the others, which come later here
        store.wait([f"{telling.HEARD}/all"], timedelta(seconds=1))  # which it need not wait for any longer


def test_of_ranks_that_have_not_met_rank_0_tells_and_the_others_let_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told, waited = [], []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(ranks, "store", None)
    monkeypatch.setattr(telling.time, "sleep", waited.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        telling.tell_once(lambda rank=rank: told.append(rank))  # type: ignore[misc]
    assert (told, waited) == (["0"], [telling.TELLING_S])


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
    with pytest.raises(RankError) as raised, telling.explaining("take less"):
        raise error
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("broken", [2, 3])
def test_of_ranks_that_lose_the_others_the_first_alone_says_so_and_names_who_does_not(
    monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "12")
    store = HashStore()
    monkeypatch.setattr(ranks, "store", store)
    monkeypatch.setattr(telling, "TELLING_S", 0.1)
    for rank in range(12):
        store.set(f"{ranks.HOST}-{rank}", f"node{rank // 4}")
    store.set(f"{telling.LOST}-2", "yes")
    lost = [telling._explained(RuntimeError("[gloo] Connection closed by peer"), "") for _ in range(broken)]
    assert [type(error) for error in lost] == [RankError, *[PeerError] * (broken - 1)]
    named = ", ".join(f"rank {rank} on node{rank // 4}" for rank in (1, 3, 4, 5, 6, 7, 8, 9))
    assert f"([gloo] Connection closed by peer); no word from {named} and 2 more; if one of them" in str(lost[0])

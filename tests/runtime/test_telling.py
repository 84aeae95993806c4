"""Errors of several ranks, told once."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def lost_by(world: int, store: HashStore, monkeypatch: pytest.MonkeyPatch, telling_s: float = 0.2) -> None:
    """Let this be a rank of so many that meet in a store."""
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setattr(ranks, "store", store)
    monkeypatch.setattr(telling, "TELLING_S", telling_s)


def test_no_rank_ends_while_the_first_still_looks_who_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = threading.Event()

    class Slow(HashStore):
        """As where a thousand ranks are asked for."""

        def check(self, keys: list[str]) -> bool:
            looks.set()
            time.sleep(0.05)
            return super().check(keys)

    lost_by(2, store := Slow(), monkeypatch, telling_s=0.5)
    error = RuntimeError("[gloo] Connection closed by peer")
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(telling._explained, error, "")
        while not super(Slow, store).check([telling.FAILURE]):
            time.sleep(0.001)
        second = threads.submit(telling._explained, error, "")
        assert isinstance(second.result(), PeerError)
        assert looks.is_set()
        assert super(Slow, store).check([telling.NAMED])
        assert "; no word from rank 1, which never came; if one" in str(first.result())  # and `get` would wait for it


@pytest.mark.parametrize("error", [RuntimeError("NCCL error in: x.cpp:77"), RuntimeError("CUDA error: out of memory")])
def test_what_breaks_on_this_rank_alone_is_not_laid_to_the_others(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    lost_by(4, HashStore(), monkeypatch, telling_s=5.0)
    began = time.monotonic()
    assert "no word" not in str(telling._explained(error, ""))  # the others wait, and do not know of it yet
    assert time.monotonic() - began < 4  # nor does this rank wait for them


def test_a_rank_whose_store_is_frozen_says_so_and_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    thaws = threading.Event()

    class Frozen(HashStore):
        def add(self, key: str, amount: int) -> int:
            thaws.wait(20)
            return super().add(key, amount)

    lost_by(2, Frozen(), monkeypatch, telling_s=0.05)
    monkeypatch.setenv("MASTER_ADDR", "node0")
    lost = telling._explained(RuntimeError("[gloo] Timed out"), "")
    thaws.set()
    assert str(lost).startswith(
        "rank 0 lost the other ranks ([gloo] Timed out); no word from node0, where the ranks meet;"
    )


def test_a_store_that_is_gone_leaves_the_error_of_the_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(HashStore):
        def add(self, key: str, amount: int) -> int:
            raise RuntimeError("Broken pipe")

    lost_by(2, Gone(), monkeypatch)
    assert "lost the other ranks ([gloo] Timed out); if one of them" in str(
        telling._explained(RuntimeError("[gloo] Timed out"), "")
    )


@pytest.mark.parametrize("where", ["rendezvous", "connecting"])
def test_a_rank_that_never_comes_is_one_line_for_those_that_did(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def late(*args: object, **options: object) -> object:
        raise dist.DistStoreError("Timed out after 6 seconds waiting for clients. 1/2 clients joined.")

    lost_by(2, HashStore(), monkeypatch)
    monkeypatch.setattr(ranks, "store", None)
    meet: Callable[..., object] = late if where == "rendezvous" else lambda *_, **__: iter([[HashStore()]])
    monkeypatch.setattr(ranks, "_meeting", None)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    for name in ("init_process_group", "is_initialized"):
        monkeypatch.setattr(ranks.dist, name, late if name.startswith("init") else lambda: False)
    for name, instead in (("has_cuda", lambda: False), ("rendezvous", meet), ("_allow_connections", lambda: None)):
        monkeypatch.setattr(ranks, name, instead)
    who = "" if where == "rendezvous" else "; no word from rank 1, which never came"
    with (
        pytest.raises(RankError, match=rf"rank 0 lost .*1/2 clients joined\.\){who}; if one of them was only slow"),
        telling.explaining(""),
    ):
        ranks.join()

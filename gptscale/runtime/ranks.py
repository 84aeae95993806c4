"""The processes of a run as a group: joining, asking each other, failing together, leaving."""

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed import distributed_c10d as c10d
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.rendezvous import rendezvous

from gptscale import errors
from gptscale.disk import allow_open_files
from gptscale.errors import GptscaleError, RankError, TrainingError
from gptscale.runtime.interfaces import let_gloo_follow_nccl, let_gloo_leave_the_machine
from gptscale.runtime.launch import (
    check_meeting_point,
    collective_timeout_s,
    launched_engine,
    launched_local_rank,
    launched_rank,
    launched_world,
    life,
    says_yes,
)

T = TypeVar("T")

NCCL_WAITS_ON = timedelta(seconds=60)
"""How much longer NCCL waits for a rank than Gloo: it ends the process without a word, and Gloo's error can be told."""

HOST = "gptscale/host"
"""Where each rank says on which machine it is."""

_meeting: c10d.Store | None = None
"""Where the ranks found each other; it outlives their groups."""

_joins = 0
"""How often this process has joined the others."""

store: c10d.Store | None = None
"""The part of it that belongs to this group."""

_words: dist.ProcessGroup | None = None
"""What the ranks tell each other goes over the CPU, so that it waits for no GPU; None is the default group."""


def patience() -> timedelta:
    """How long a collective between the devices waits for a rank."""
    return timedelta(seconds=collective_timeout_s()) + (NCCL_WAITS_ON if has_cuda() else timedelta())


def has_cuda() -> bool:
    """Whether this run computes on CUDA devices; ACCELERATE_USE_CPU=true says no."""
    return torch.cuda.is_available() and not says_yes("ACCELERATE_USE_CPU")


def join() -> None:
    """Meet the other ranks. Does nothing for a single process without ZeRO or FSDP2, or if it was done.

    An agent that restarts its workers keeps its store, and with it the addresses of the dead ones, as a process that
    trains twice keeps those of its first group; so each life of the workers and each group has its own part of it.
    """
    global _meeting, _joins, store, _words  # noqa: PLW0603
    alone = launched_world() == 1
    if dist.is_initialized() or (alone and launched_engine() == "plain"):
        return
    os.environ.setdefault("LOCAL_RANK", str(launched_local_rank()))
    if has_cuda():
        _check_gpu()
        torch.cuda.set_device(launched_local_rank())
    timeout = timedelta(seconds=collective_timeout_s())
    if alone:
        store = HashStore()
    else:
        _allow_connections()
        if _meeting is None:
            check_meeting_point()
            _meeting = next(iter(rendezvous("env://", timeout=timeout)))[0]
        _joins += 1
        store = c10d.PrefixStore(f"life-{life() or 0}-group-{_joins}", _meeting)
    store.set(f"{HOST}-{launched_rank()}", socket.gethostname())
    let_gloo_follow_nccl()
    if not alone:
        let_gloo_leave_the_machine(store)
    backend = "nccl" if has_cuda() else "gloo"
    with _stdout_on_stderr():
        dist.init_process_group(
            backend, store=store, rank=launched_rank(), world_size=launched_world(), timeout=patience()
        )
        _words = dist.new_group(backend="gloo", timeout=timeout) if has_cuda() else None


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Let what C++ prints go to stderr: torch 2.10 tells whom Gloo has connected, which is no output of ours."""
    if sys.stdout is None:  # it was closed before Python started
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _allow_connections() -> None:
    """Raise RankError if this process may not be connected to all others, for which it would wait without a word.

    Gloo connects each rank with every other, and the ranks' store has a connection to each besides.
    """
    needed = 2 * launched_world()
    if (most := allow_open_files(needed)) is not None:
        raise RankError(
            f"rank {launched_rank()} needs {needed:,} connections to the others, and this process may have no more "
            f"than {most:,} files open; raise the limit on all machines (ulimit -Hn)"
        )


def _check_gpu() -> None:
    """Raise RankError if the launcher has started more ranks on this machine than there are GPUs."""
    number, count = launched_local_rank() + 1, torch.cuda.device_count()
    if number > count:
        raise RankError(
            f"rank {launched_rank()} is number {number} on its machine, where {count} GPUs can be used; start one rank "
            "for each (--num_processes of all machines, --nproc_per_node of one), or let CUDA_VISIBLE_DEVICES show more"
        )


def grid(device_type: str, dp_shard_size: int) -> DeviceMesh:
    """All ranks as copies of the state by the ranks that share a copy, in the order of their numbers.

    With one copy there is the second axis only. All ranks call this together.
    """
    if dp_shard_size == launched_world():
        assert dist.group.WORLD is not None
        return DeviceMesh.from_group(dist.group.WORLD, device_type)
    numbers = torch.arange(launched_world()).view(-1, dp_shard_size)
    with _stdout_on_stderr():
        groups = [_group_of_this_rank(axis.tolist()) for axis in (numbers.T, numbers)]
    return DeviceMesh.from_group(groups, device_type, numbers, mesh_dim_names=("dp_replicate", "dp_shard"))


def _group_of_this_rank(groups: list[list[int]]) -> dist.ProcessGroup:
    mine, _ = dist.new_subgroups_by_enumeration(groups, timeout=patience())  # type: ignore[no-untyped-call]
    return mine  # type: ignore[no-any-return]


def leave() -> None:
    """Wait for the other ranks and part from them, at the good end of a run."""
    if dist.is_initialized():
        dist.barrier(group=_words)  # not NCCL, which would first have to be told its device
        dist.destroy_process_group()


def gather(value: T) -> list[T]:
    """Every rank's value, on every rank."""
    if launched_world() == 1:
        return [value]
    values: list[Any] = [None] * launched_world()
    dist.all_gather_object(values, value, group=_words)
    return values


def any_of(*flags: bool) -> tuple[bool, ...]:
    """For each flag whether it is set on any rank, in one exchange; the same answers on all."""
    if launched_world() == 1:
        return flags
    votes = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(votes, dist.ReduceOp.MAX, group=_words)
    return tuple(bool(vote) for vote in votes.tolist())


def agree(work: Callable[[], T]) -> T:
    """Do work on this rank; if it failed on any rank, raise on all, with the first one's message."""
    try:
        result, failure = work(), None
    except Exception as error:
        result, failure = None, error
    raise_together(failure)
    return result  # type: ignore[return-value]


def raise_together(failure: Exception | None) -> None:
    """Raise the first rank's failure on all ranks, if there is one."""
    if launched_world() == 1 and failure is not None:
        raise failure
    if not any_of(failure is not None)[0]:  # what everybody has to say takes a while where there are a thousand
        return
    said = gather(None if failure is None else (type(failure).__name__, str(failure)))
    rank, (kind, message) = next((rank, what) for rank, what in enumerate(said) if what is not None)
    raise _as_error(kind, message, rank) from failure


def _as_error(kind: str, message: str, rank: int) -> GptscaleError:
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, GptscaleError):
        return known(message)
    return TrainingError(f"rank {rank} failed with {kind}: {message}")

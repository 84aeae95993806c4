"""The processes of a run as a group: joining, asking each other, failing together, leaving."""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
from gptscale.errors import GptscaleError, PeerError, RankError, TrainingError
from gptscale.runtime.device import address_towards, addressed_interfaces, interface_with
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

FAILURE = "gptscale/failure"
"""Where in the group's store a rank that fails alone says so."""

LOST = "gptscale/lost"
"""Where each rank that lost the others says so, and with that that it is there itself."""

NAMED = "gptscale/named"
"""Where the first of them notes that it has looked who does not."""

HOST = "gptscale/host"
"""Where each rank says on which machine it is."""

MOST_NAMED = 8
"""Ranks that a message lists."""

TELLING_S = 5.0
"""How long the other ranks give rank 0 to tell what went wrong."""

TOLD = "gptscale/told"
"""Where rank 0 notes that it has told what all ranks raised."""

HEARD = "gptscale/heard"
"""Where the others count themselves as they have seen that, and what follows when all have."""

ADDRESS = "gptscale/address"
"""Where the ranks of several machines say how they are reached."""

NO_MEMORY = ("out of memory", "status_alloc_failed")
"""What CUDA, NCCL and cuBLAS say where memory is gone."""

NCCL_CAUSE = "Last error:"
"""The line of NCCL's errors before the one that says what it was."""

_meeting: c10d.Store | None = None
"""Where the ranks found each other; it outlives their groups."""

_joins = 0
"""How often this process has joined the others."""

_store: c10d.Store | None = None
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
    global _meeting, _joins, _store, _words  # noqa: PLW0603
    alone = launched_world() == 1
    if dist.is_initialized() or (alone and launched_engine() == "plain"):
        return
    os.environ.setdefault("LOCAL_RANK", str(launched_local_rank()))
    if has_cuda():
        _check_gpu()
        torch.cuda.set_device(launched_local_rank())
    timeout = timedelta(seconds=collective_timeout_s())
    if alone:
        _store = HashStore()
    else:
        _allow_connections()
        if _meeting is None:
            check_meeting_point()
            _meeting = next(iter(rendezvous("env://", timeout=timeout)))[0]
        _joins += 1
        _store = c10d.PrefixStore(f"life-{life() or 0}-group-{_joins}", _meeting)
    _store.set(f"{HOST}-{launched_rank()}", socket.gethostname())
    _let_gloo_follow_nccl()
    if not alone:
        _let_gloo_leave_the_machine(_store)
    backend = "nccl" if has_cuda() else "gloo"
    with _stdout_on_stderr():
        dist.init_process_group(
            backend, store=_store, rank=launched_rank(), world_size=launched_world(), timeout=patience()
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


def _let_gloo_follow_nccl() -> None:
    """Take the network interface that NCCL was told for Gloo too, which does not read it.

    By itself Gloo takes that of the host's name, which on many machines is the loopback's.
    """
    told = os.environ.get("NCCL_SOCKET_IFNAME", "")
    here = addressed_interfaces()
    words = [word for word in told.removeprefix("=").split(",") if word and not told.startswith("^")]
    found = [name for word in words for name in here if name == word]
    if not told.startswith("="):  # each word is a prefix
        found += [name for word in words for name in here if name.startswith(word)]
    if found:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", found[0])


def _let_gloo_leave_the_machine(store: c10d.Store) -> None:
    """Where this host's name means the loopback, as Debian's /etc/hosts has it, take the interface to other machines.

    Gloo would tell them the loopback's address. All ranks call this together.
    """
    here = address_towards(os.environ["MASTER_ADDR"])
    store.set(f"{ADDRESS}-{launched_rank()}", here)
    on_one_machine = launched_world() == int(os.environ.get("LOCAL_WORLD_SIZE", launched_world()))
    if on_one_machine or address_towards(socket.gethostname()):
        return
    if not here:  # on the machine where all meet, whose own name leads nowhere else
        said = (store.get(f"{ADDRESS}-{rank}").decode() for rank in range(launched_world()))
        here = address_towards(next((address for address in said if address), ""))
    if name := interface_with(here):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


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


def tell_once(tell: Callable[[], None]) -> None:
    """Tell of an error that all ranks have: rank 0 does. Others wait for it, since the first to end has all ended.

    Where rank 0 does not come to it within seconds, the error was not everybody's, and this rank tells it.
    Rank 0 in turn waits until the others have seen that it did: without a launcher it is the store's host.
    """
    if launched_rank() == 0:
        tell()
        if _store is not None and launched_world() > 1:
            with suppress(RuntimeError):  # one of them has ended already
                _store.set(TOLD, "yes")
                _store.wait([f"{HEARD}/all"], timedelta(seconds=TELLING_S))
    elif _store is None:  # the ranks have not met, and read the same config
        time.sleep(TELLING_S)
    else:
        try:
            _store.wait([TOLD], timedelta(seconds=TELLING_S))
        except RuntimeError:
            tell()
        else:
            if _store.add(HEARD, 1) == launched_world() - 1:
                _store.set(f"{HEARD}/all", "yes")


@contextmanager
def explaining(out_of_memory: str) -> Iterator[None]:
    """Raise in place of an error that the other ranks do not know of what explains it, with what to do for memory."""
    try:
        yield
    except Exception as error:
        instead = _explained(error, out_of_memory)
        raise instead from (error.__cause__ if instead is error else error)


def _explained(error: Exception, out_of_memory: str) -> Exception:
    """What to raise instead of an error that the other ranks do not know of.

    The first rank that fails alone leaves a note and says why; the others, whose next exchange then breaks
    off, find the note and stay silent, as PeerError. Errors of our own kinds are raised by all ranks already.
    """
    if isinstance(error, GptscaleError):
        return error
    broken, silent = _is_broken_exchange(error), ""
    if _store is not None and launched_world() > 1:
        with suppress(RuntimeError):  # the store is gone with its host
            if broken:
                _store.set(f"{LOST}-{launched_rank()}", "yes")
            if _store.add(FAILURE, 1) > 1 and broken:  # in one exchange: many may find out at the same moment
                _wait_for(NAMED)  # the first to end may end all
                return PeerError("another rank failed; it says why")
            silent = _silent_ranks() if broken else ""
            _store.set(NAMED, "yes")
    if lack := _lack_of_memory(error):
        return RankError(f"rank {launched_rank()} ran out of memory: {lack}; {out_of_memory}")
    return RankError(_lost(error, silent)) if broken else error


def _wait_for(*notes: str) -> bool:
    """Whether notes of other ranks come within seconds."""
    assert _store is not None
    try:
        _store.wait(list(notes), timedelta(seconds=TELLING_S))
    except RuntimeError:
        return False
    return True


def _silent_ranks() -> str:
    """Who does not say within seconds that it lost the others too: it hangs or is gone. Named with its machine."""
    assert _store is not None
    notes = [f"{LOST}-{rank}" for rank in range(launched_world())]
    if _wait_for(*notes):
        return ""
    silent = [rank for rank, note in enumerate(notes) if not _store.check([note])]
    named = [f"rank {rank} on {_store.get(f'{HOST}-{rank}').decode()}" for rank in silent[:MOST_NAMED]]
    more = f" and {len(silent) - MOST_NAMED} more" if silent[MOST_NAMED:] else ""
    return f"; no word from {', '.join(named)}{more}"


def _lack_of_memory(error: Exception) -> str | None:
    """The line of an error that tells of it; None of another. Only torch's allocator has a kind of its own for it."""
    lines = str(error).splitlines() if isinstance(error, RuntimeError) else []
    telling = [line for line in lines if any(sign in line.lower() for sign in NO_MEMORY)]
    return next(iter(telling), str(error) if isinstance(error, torch.OutOfMemoryError) else None)


def _lost(error: Exception, silent: str) -> str:
    first, *others = str(error).splitlines()
    if NCCL_CAUSE in others[:-1]:
        first += f": {others[others.index(NCCL_CAUSE) + 1]}"
    return (
        f"rank {launched_rank()} lost the other ranks ({first}){silent}; if one of them was only slow, "
        f"raise GPTSCALE_COLLECTIVE_TIMEOUT_S={collective_timeout_s():g}, the seconds that a rank waits"
    )


def _is_broken_exchange(error: Exception) -> bool:
    """Whether the backend gave up on the other ranks."""
    text = str(error).lower()
    signs = ("timed out", "timeout", "connection closed", "connection reset", "broken pipe", "gloo", "nccl")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in signs)
    )


def _as_error(kind: str, message: str, rank: int) -> GptscaleError:
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, GptscaleError):
        return known(message)
    return TrainingError(f"rank {rank} failed with {kind}: {message}")

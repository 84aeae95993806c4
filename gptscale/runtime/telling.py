"""What ranks tell of an error: one that all have once, and one that a single rank has so that the others are silent."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from gptscale.errors import GptscaleError, PeerError, RankError
from gptscale.runtime import ranks
from gptscale.runtime.launch import collective_timeout_s, launched_rank, launched_world

FAILURE = "gptscale/failure"
"""Where in the group's store a rank that fails alone says so."""

LOST = "gptscale/lost"
"""Where each rank that lost the others says so, and with that that it is there itself."""

NAMED = "gptscale/named"
"""Where the first of them notes that it has looked who does not."""

MOST_NAMED = 8
"""Ranks that a message lists."""

TELLING_S = 5.0
"""How long the other ranks give rank 0 to tell what went wrong."""

TOLD = "gptscale/told"
"""Where rank 0 notes that it has told what all ranks raised."""

HEARD = "gptscale/heard"
"""Where the others count themselves as they have seen that, and what follows when all have."""

NO_MEMORY = ("out of memory", "status_alloc_failed")
"""What CUDA, NCCL and cuBLAS say where memory is gone."""

NCCL_CAUSE = "Last error:"
"""The line of NCCL's errors before the one that says what it was."""


def tell_once(tell: Callable[[], None]) -> None:
    """Tell of an error that all ranks have: rank 0 does. Others wait for it, since the first to end has all ended.

    Where rank 0 does not come to it within seconds, the error was not everybody's, and this rank tells it.
    Rank 0 in turn waits until the others have seen that it did: without a launcher it is the store's host.
    """
    if launched_rank() == 0:
        tell()
        if ranks.store is not None and launched_world() > 1:
            with suppress(RuntimeError):  # one of them has ended already
                ranks.store.set(TOLD, "yes")
                ranks.store.wait([f"{HEARD}/all"], timedelta(seconds=TELLING_S))
    elif ranks.store is None:  # the ranks have not met, and read the same config
        time.sleep(TELLING_S)
    else:
        try:
            ranks.store.wait([TOLD], timedelta(seconds=TELLING_S))
        except RuntimeError:
            tell()
        else:
            if ranks.store.add(HEARD, 1) == launched_world() - 1:
                ranks.store.set(f"{HEARD}/all", "yes")


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
    if ranks.store is not None and launched_world() > 1:
        with suppress(RuntimeError):  # the store is gone with its host
            if broken:
                ranks.store.set(f"{LOST}-{launched_rank()}", "yes")
            if ranks.store.add(FAILURE, 1) > 1 and broken:  # in one exchange: many may find out at the same moment
                _wait_for(NAMED)  # the first to end may end all
                return PeerError("another rank failed; it says why")
            silent = _silent_ranks() if broken else ""
            ranks.store.set(NAMED, "yes")
    if lack := _lack_of_memory(error):
        return RankError(f"rank {launched_rank()} ran out of memory: {lack}; {out_of_memory}")
    return RankError(_lost(error, silent)) if broken else error


def _wait_for(*notes: str) -> bool:
    """Whether notes of other ranks come within seconds."""
    assert ranks.store is not None
    try:
        ranks.store.wait(list(notes), timedelta(seconds=TELLING_S))
    except RuntimeError:
        return False
    return True


def _silent_ranks() -> str:
    """Who does not say within seconds that it lost the others too: it hangs or is gone. Named with its machine."""
    assert ranks.store is not None
    notes = [f"{LOST}-{rank}" for rank in range(launched_world())]
    if _wait_for(*notes):
        return ""
    silent = [rank for rank, note in enumerate(notes) if not ranks.store.check([note])]
    named = [f"rank {rank} on {ranks.store.get(f'{ranks.HOST}-{rank}').decode()}" for rank in silent[:MOST_NAMED]]
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

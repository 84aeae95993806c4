"""What ranks tell of an error: one that all have once, and one that a single rank has so that the others are silent."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Thread

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
    broken, first, silent = _is_broken_exchange(error), True, ""
    if ranks.store is not None and launched_world() > 1:
        first, silent = _compared_in_time(error)
    if broken and not first:
        return PeerError("another rank failed; it says why")
    if lack := _lack_of_memory(error):
        return RankError(f"rank {launched_rank()} ran out of memory: {lack}; {out_of_memory}")
    return RankError(_lost(error, silent)) if broken else error


def note_lost(error: BaseException | None) -> None:
    """Say that this rank is there though it lost the others, if that is what the error tells.

    Where closing may take longer than the others wait, as W&B's does, this comes before it.
    """
    if isinstance(error, Exception) and _is_broken_exchange(error) and ranks.store is not None and launched_world() > 1:
        with suppress(RuntimeError):  # the store is gone with its host
            ranks.store.set(f"{LOST}-{launched_rank()}", "yes")


def _compared_in_time(error: Exception) -> tuple[bool, str]:
    """As `_compare_notes`, or without the others' notes where the store is gone, or does not answer.

    It answers no more, and torch waits for it for ever, where the process that holds it or its machine is frozen.
    """
    found = [(True, f"; no word from {os.environ.get('MASTER_ADDR')}, where the ranks meet")]

    def compare() -> None:
        try:
            found[0] = _compare_notes(error)
        except RuntimeError:  # the store is gone with its host
            found[0] = (True, "")

    asking = Thread(target=compare, daemon=True)
    asking.start()
    asking.join(3 * TELLING_S)
    return found[0]


def _compare_notes(error: Exception) -> tuple[bool, str]:
    """Whether this rank is the first to fail alone, and if so who is silent."""
    assert ranks.store is not None
    note_lost(error)
    if ranks.store.add(FAILURE, 1) > 1:  # in one exchange: many may find out at the same moment
        if _is_broken_exchange(error):
            _wait_for([NAMED], 2 * TELLING_S)  # the first to end may end all, and it waits and looks that long
        return False, ""
    silent = _silent_ranks() if _has_waited(error) else ""
    ranks.store.set(NAMED, "yes")
    return True, silent


def _wait_for(notes: list[str], seconds: float) -> bool:
    """Whether notes of other ranks come in time."""
    assert ranks.store is not None
    try:
        ranks.store.wait(notes, timedelta(seconds=seconds))
    except RuntimeError:
        return False
    return True


def _silent_ranks() -> str:
    """Who does not say within seconds that it lost the others too: it hangs or is gone. Named with its machine."""
    assert ranks.store is not None
    notes = [f"{LOST}-{rank}" for rank in range(launched_world())]
    if _wait_for(notes, TELLING_S):
        return ""
    silent = [rank for rank, note in enumerate(notes) if not ranks.store.check([note])]
    named = ", ".join(_named(rank) for rank in silent[:MOST_NAMED])
    more = f" and {len(silent) - MOST_NAMED} more" if silent[MOST_NAMED:] else ""
    return f"; no word from {named}{more}"


def _named(rank: int) -> str:
    assert ranks.store is not None
    if not ranks.store.check([f"{ranks.HOST}-{rank}"]):  # for which `get` would wait
        return f"rank {rank}, which never came"
    return f"rank {rank} on {ranks.store.get(f'{ranks.HOST}-{rank}').decode()}"


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


def _has_waited(error: Exception) -> bool:
    """Whether those who wait for the same ranks hear of it too. NCCL's errors may be of this rank's device alone."""
    return _is_broken_exchange(error) and "nccl" not in str(error).lower()

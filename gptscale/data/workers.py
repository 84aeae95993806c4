"""Worker processes that make units: one each, since Python would hold the lock of threads.

They end with the process that started them, however it ends: what they were writing does not count.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from threading import Thread

from gptscale.data.job import Job
from gptscale.data.unit import Receipt, Unit
from gptscale.errors import DataError

Done = tuple[Unit, Receipt, bool]
"""A unit, what it wrote, and whether that was made now."""


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def do_units(job: Job, units: Sequence[Unit], workers: int) -> Iterator[Done]:
    """Make units in up to so many processes; they come as they are done. One worker is this process itself."""
    if min(workers, len(units)) <= 1:
        for unit in units:
            yield (unit, *job.do(unit))
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads of this process hold
    ours, theirs = context.Pipe()
    pool = ProcessPoolExecutor(
        min(workers, len(units)), mp_context=context, initializer=_start, initargs=(job, ours, theirs)
    )
    try:
        with _holding_ctrl_c_back():
            waiting = {pool.submit(_do, unit): unit for unit in units}  # the first of them starts the workers
        for future in as_completed(waiting):
            yield (waiting.pop(future), *future.result())
        pool.shutdown()
    except BrokenProcessPool:
        raise DataError(
            f"a worker process was ended from outside, perhaps for want of memory; run prepare again, which goes on "
            f"from here, with fewer than --workers={workers}"
        ) from None
    finally:
        ours.close()  # which ends workers that are still at work
        theirs.close()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _holding_ctrl_c_back() -> Iterator[None]:
    """Start processes that leave Ctrl-C to their parent, also while they are still being loaded.

    They inherit that the signal is blocked; one that comes to the parent meanwhile reaches it afterwards.
    """
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


_job: Job


def _start(job: Job, ours: Connection, theirs: Connection) -> None:
    """Set up a worker."""
    global _job  # noqa: PLW0603 - a worker process has one job
    _job = job
    _job.get_ready()
    ours.close()
    Thread(target=_end_with_parent, args=(theirs,), daemon=True).start()


def _do(unit: Unit) -> tuple[Receipt, bool]:
    return _job.do(unit)


def _end_with_parent(pipe: Connection) -> None:
    try:
        pipe.recv_bytes()
    except EOFError:
        os._exit(1)

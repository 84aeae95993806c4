"""Worker processes that make units, since Python would hold the lock of threads.

A worker asks for a unit, tokenizes it, and asks for the next one while a thread of it forces to disk what it wrote.
Workers end with the process that started them, however it ends: what they were writing does not count.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, SpawnContext
from threading import Lock, Thread

from gptscale.data.job import Job, sealed
from gptscale.data.unit import Receipt, Unit, WrittenUnit
from gptscale.errors import DataError, GptscaleError

Done = tuple[Unit, Receipt, bool]
"""A unit, what it wrote, and whether that was made now."""


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def do_units(job: Job, units: Sequence[Unit], workers: int) -> Generator[Done, None, None]:
    """Make units in up to so many processes; they come as they are done. One worker is this process itself."""
    if min(workers, len(units)) <= 1:
        for unit in units:
            yield (unit, *job.do(unit))
        return
    with _workers(job, min(workers, len(units))) as pipes:
        try:
            yield from _hand_out(units, pipes)
        except (EOFError, ConnectionError):
            raise DataError(
                f"a worker process was ended from outside, perhaps for want of memory; run prepare again, which goes "
                f"on from here, with fewer than --workers={workers}"
            ) from None


def _hand_out(units: Sequence[Unit], pipes: Sequence[Connection]) -> Iterator[Done]:
    """Answer each worker that asks with the next unit, or with None, and pass on what is done."""
    waiting, left = iter(units), len(units)
    while left:
        for pipe in wait(pipes):
            assert isinstance(pipe, Connection)
            said: Done | BaseException | None = pipe.recv()
            if said is None:
                pipe.send(next(waiting, None))
            elif isinstance(said, BaseException):
                raise said
            else:
                left -= 1
                yield said


@contextmanager
def _workers(job: Job, number: int) -> Iterator[list[Connection]]:
    """So many workers, each behind a pipe; none is left at the end, whatever it was at."""
    context = _context()
    ours, theirs = context.Pipe()
    pipes, processes = [], []
    try:
        with _holding_ctrl_c_back():
            for _ in range(number):
                here, there = context.Pipe()
                process = context.Process(target=_work, args=(job, there, ours, theirs), daemon=True)
                process.start()
                there.close()  # so that the end of the worker is the end of the pipe
                pipes.append(here)
                processes.append(process)
        yield pipes
    finally:
        ours.close()  # which ends the workers
        theirs.close()
        for process in processes:
            process.join()
        for pipe in pipes:
            pipe.close()


def _context() -> ForkContext | SpawnContext:
    """How processes start: as a fork, which is at work at once, where no thread could hold a lock meanwhile."""
    alone = sys.platform == "linux" and threading.active_count() == 1
    return multiprocessing.get_context("fork") if alone else multiprocessing.get_context("spawn")


@contextmanager
def _holding_ctrl_c_back() -> Iterator[None]:
    """Start processes that leave Ctrl-C to their parent, also while they are still being loaded.

    They inherit that the signal is blocked; one that comes to the parent meanwhile reaches it afterwards. Another
    thread of it may take the signal, and Python would still tell the main one: in the middle of a start, where a
    worker would wait for ever for its first words.
    """
    resource_tracker.ensure_running()  # spawn's tracker lets the signal through again when it starts
    came: list[int] = []
    handler = None
    if threading.current_thread() is threading.main_thread():
        handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of a fork beside any thread, such as numpy's, which rest and see to forks themselves.
            warnings.filterwarnings("ignore", "(?s).*use of fork", DeprecationWarning)
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


def _work(job: Job, pipe: Connection, ours: Connection, theirs: Connection) -> None:
    """Make units until there are no more, then wait for the end."""
    ours.close()
    end = Thread(target=_end_with_parent, args=(theirs,), daemon=True)
    end.start()
    try:
        job.give_memory_back()
        _make_units(job, _Talk(pipe))
    except BaseException as error:
        pipe.send(_with_traceback(error))
    end.join()


def _make_units(job: Job, talk: "_Talk") -> None:
    with ThreadPoolExecutor(1) as disk:
        sealing = None
        while (unit := talk.ask()) is not None:
            found = job.begin(unit)
            if sealing is not None:
                sealing.result()
            sealing = disk.submit(_seal, unit, found, talk)
        if sealing is not None:
            sealing.result()


def _seal(unit: Unit, found: Receipt | WrittenUnit, talk: "_Talk") -> None:
    talk.say((unit, *sealed(found)))


class _Talk:
    """A worker's end of its pipe, for two threads."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = Lock()

    def ask(self) -> Unit | None:
        """The next unit; None if there is no more. One thread asks."""
        self.say(None)
        unit: Unit | None = self._pipe.recv()
        return unit

    def say(self, done: Done | None) -> None:
        with self._lock:
            self._pipe.send(done)


def _with_traceback(error: BaseException) -> BaseException:
    """An error of ours with a note of where it arose, which it would lose on its way to another process."""
    if not isinstance(error, GptscaleError):
        error.add_note("".join(traceback.format_exception(error)))
    return error


def _end_with_parent(pipe: Connection) -> None:
    try:
        pipe.recv_bytes()
    except EOFError:
        os._exit(1)

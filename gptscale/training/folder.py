"""The run folder: one process group at a time may write it, and it says what the run is made of."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptscale.config.load import dump_config
from gptscale.config.schema import Config
from gptscale.disk import write_whole
from gptscale.errors import TrainingError
from gptscale.runtime.engine import Engine
from gptscale.tracking.jsonl import cut_back
from gptscale.training.provenance import write_provenance

DONE = "done"
"""The marker of a run that has reached its last step; launchers go by it, since an exit code can mean many things."""


@contextmanager
def held(run_dir: Path, engine: Engine) -> Iterator[None]:
    """Keep other trainings out of the run folder. All ranks call this together.

    Raises TrainingError if one is at work there. The lock goes with the process that holds it, however it ends.
    """
    lock = engine.agree(lambda: _lock(run_dir) if engine.is_first else None)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def open_folder(cfg: Config, step: int, **facts: Any) -> None:
    """Write what the run is made of, and cut its records back to the step it starts from."""
    try:
        (cfg.run.dir / DONE).unlink(missing_ok=True)  # of a shorter run
        write_whole(cfg.run.dir / "config.yaml", dump_config(cfg).encode())
        write_provenance(cfg.run.dir, from_step=step, **facts)
    except OSError as error:
        raise _not_writable(cfg.run.dir, error) from error
    cut_back(cfg.run.dir, step or None)


def mark_done(run_dir: Path, step: int) -> None:
    """Say that the run has reached its last step, once everything of it is on disk."""
    text = f"{step}\n".encode()
    try:
        if not (run_dir / DONE).is_file() or (run_dir / DONE).read_bytes() != text:
            write_whole(run_dir / DONE, text)
    except OSError as error:
        raise _not_writable(run_dir, error) from error


def _lock(run_dir: Path) -> int:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _not_writable(run_dir, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 200).decode(errors="replace") or "another process"
        os.close(handle)
        raise TrainingError(
            f"run.dir={run_dir} is in use by {holder}; stop that training, or choose another run.dir"
        ) from None
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return handle


def _not_writable(run_dir: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"run.dir={run_dir} cannot be written: {error.strerror}; free space, mend its permissions, or choose another"
    )

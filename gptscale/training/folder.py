"""The run folder: the start that came last may write it, and it says what the run is made of."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptscale.checkpoint.fence import Fence
from gptscale.checkpoint.layout import checkpoints_dir
from gptscale.config.load import dump_config
from gptscale.config.schema import Config
from gptscale.data.files import remove_leftovers
from gptscale.disk import write_whole
from gptscale.errors import TrainingError
from gptscale.runtime.engine import Engine
from gptscale.runtime.launch import collective_timeout_s
from gptscale.tracking.jsonl import cut_back
from gptscale.tracking.provenance import write_provenance

DONE = "done"
"""The marker of a run that has reached its last step; launchers go by it, since an exit code can mean many things."""

SEEN_S = 60.0
"""How long a network file system's client may go on believing that there is no such folder."""


def take_over(run_dir: Path, engine: Engine) -> Fence:
    """Fence off every earlier start in the run folder. All ranks call this together."""
    number, mark = engine.gather(engine.agree(lambda: _take(run_dir) if engine.is_first else (0, None)))[0]
    fence = Fence(run_dir, number)
    engine.agree(lambda: _check_seen(fence, mark, engine.rank))
    return fence


def _take(run_dir: Path) -> tuple[int, str | None]:
    fence = take_alone(run_dir)
    # Before any other rank looks: a network's client that has once found no such folder goes on believing it for a
    # while, and would find no place for its part of the first checkpoint.
    with suppress(OSError):  # it is a link, which may lead nowhere; whoever reads it says so
        checkpoints_dir(run_dir).mkdir(exist_ok=True)
    return fence.number, fence.mark()


def _check_seen(fence: Fence, mark: str | None, rank: int) -> None:
    """Raise TrainingError unless this rank looks at the folder of the first, which the first save would need."""
    until = time.monotonic() + min(SEEN_S, collective_timeout_s() / 2)  # the others wait meanwhile
    while (found := fence.mark()) != mark and time.monotonic() < until:
        time.sleep(1)
    if found != mark:
        raise TrainingError(
            f"rank {rank} does not see run.dir={fence.run_dir} as rank 0 has just written it; put it on a disk that "
            "all machines see, under one path"
        )


def take_alone(run_dir: Path) -> Fence:
    """Fence off every earlier start in the run folder, in one process."""
    try:
        return Fence.take(run_dir)
    except OSError as error:
        raise _not_writable(run_dir, error) from error


def open_folder(cfg: Config, fence: Fence, step: int, *, again: bool = False, **facts: Any) -> None:
    """Write what the run is made of, and cut its records back to the step it starts from.

    again says that this start has begun before, and goes on after a rollback.

    The records become new files, so what an earlier start still appends goes to the old ones, which have no name.
    """
    fence.check(fresh=True)
    try:
        (cfg.run.dir / DONE).unlink(missing_ok=True)  # of a shorter run
        write_whole(cfg.run.dir / "config.yaml", dump_config(cfg).encode())
        if not again:
            write_provenance(cfg.run.dir, from_step=step, **facts)
    except OSError as error:
        raise _not_writable(cfg.run.dir, error) from error
    cut_back(cfg.run.dir, step or None)
    remove_leftovers(cfg.run.dir)


def is_done(run_dir: Path) -> bool:
    """Whether the run was marked as finished."""
    return (run_dir / DONE).is_file()


def mark_done(run_dir: Path, fence: Fence, step: int) -> None:
    """Say that the run has reached its last step, once everything of it is on disk."""
    fence.check(fresh=True)
    text = f"{step}\n".encode()
    try:
        if not is_done(run_dir) or (run_dir / DONE).read_bytes() != text:
            write_whole(run_dir / DONE, text)
    except OSError as error:
        raise _not_writable(run_dir, error) from error


def _not_writable(run_dir: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"run.dir={run_dir} cannot be written: {error.strerror}; free space, mend its permissions, or choose another"
    )

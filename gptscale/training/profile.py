"""A trace of a few steps with every operator and kernel, for those who look for time."""

import gc
import gzip
import shutil
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Self

from torch.profiler import profile, schedule, supported_activities

from gptscale.runtime.engine import Engine

PROFILED_STEPS = 3

FOLDER = "profile"
"""Of a run folder."""


class StepProfile:
    """Watches some steps on rank 0 with torch's profiler, and leaves a file that Perfetto and chrome://tracing open.

    The step before them is watched too and forgotten, since the profiler's own beginning takes time. What is watched
    is slower than the rest. Use it in a `with` statement: what was not watched to its end is dropped there.
    """

    def __init__(self, run_dir: Path, engine: Engine, first_step: int | None, start: int, total_steps: int) -> None:
        """First_step is null for none; start is the step from which this start goes on."""
        self._path = run_dir / FOLDER / f"step-{first_step or 0:08}.json.gz"
        self._engine = engine
        self._profile: profile | None = None
        self._turns: tuple[int, int] | None = None
        """After which steps it begins and ends, on every rank."""
        if first_step is None or self._path.exists():
            return
        begin, end = first_step - 2, first_step + PROFILED_STEPS - 1
        if start <= begin and end <= total_steps:
            self._turns = begin, end
        else:
            engine.say(f"no profile: train.profile_at_step={first_step} needs the steps from {begin + 1} to {end}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # The profiler's end waits for the device, which after a failure may wait for a rank that is gone.
        if kind is None or self._engine.world == 1:
            self._stop(self._profile)

    def turns_at(self, step: int) -> bool:
        """Whether it begins or ends after a step, which takes seconds; the same on all ranks."""
        return self._turns is not None and step in self._turns

    def at(self, step: int) -> None:
        """Tell it where the run is, at the beginning and after every step."""
        if self._turns is None or not self._engine.is_first:
            return
        if step == self._turns[0]:
            self._begin()
        elif self._profile is not None:
            watched = self._profile
            if step == self._turns[1]:
                self._stop(watched)
                self._write(watched)
                del watched
                gc.collect()  # its events hang on each other
            else:
                watched.step()

    def _begin(self) -> None:
        self._profile = profile(
            activities=supported_activities(),  # type: ignore[no-untyped-call]
            schedule=schedule(wait=0, warmup=1, active=PROFILED_STEPS + 1),
            record_shapes=True,
        )
        with warnings.catch_warnings():  # torch 2.10 warns of further cycles, which there are none of
            warnings.simplefilter("ignore")
            self._profile.start()

    def _stop(self, watched: profile | None) -> None:
        self._profile = None
        if watched is not None:
            watched.stop()

    def _write(self, watched: profile) -> None:
        """Leave the file, or say why there is none: a run does not end for it, whatever the profiler raises."""
        plain, packed = (self._path.with_name(f"unfinished.{suffix}") for suffix in ("json", "json.gz"))
        try:
            self._path.parent.mkdir(exist_ok=True)
            watched.export_chrome_trace(str(plain))
            _check_whole(plain)
            with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=3) as target:
                shutil.copyfileobj(source, target)
            packed.rename(self._path)
        except Exception as error:
            self._engine.say(f"WARNING: no profile: {self._path} could not be written: {error}")
        else:
            self._engine.say(f"profile in {self._path}, for https://ui.perfetto.dev")
        for path in (plain, packed):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _check_whole(path: Path) -> None:
    """Raise OSError unless a file ends as JSON does: where a disk is full, the profiler only logs that it is."""
    with path.open("rb") as file:
        file.seek(-min(16, path.stat().st_size), 2)
        if not file.read().rstrip().endswith(b"}"):
            raise OSError("it is not whole; is the disk full?")

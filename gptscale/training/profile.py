"""A trace of a few steps with every operator and kernel, for those who look for time."""

from contextlib import suppress
from pathlib import Path

from torch.profiler import profile, schedule, supported_activities

from gptscale.runtime.engine import Engine

PROFILED_STEPS = 3

FOLDER = "profile"
"""Of a run folder."""


class StepProfile:
    """Watches some steps on rank 0 with torch's profiler, and leaves a file that Perfetto and chrome://tracing open.

    The step before them is watched too and forgotten, since the profiler's own beginning takes time. What is watched
    is slower than the rest, and so are the speeds on record for it.
    """

    def __init__(self, run_dir: Path, engine: Engine, first_step: int | None) -> None:
        """Null profiles none."""
        self._path = run_dir / FOLDER / f"step-{first_step or 0:08}.json.gz"
        self._engine = engine
        self._first_step = first_step if engine.is_first else None
        self._profile: profile | None = None

    def at(self, step: int) -> None:
        """Tell it where the run is, at the beginning and after every step."""
        if self._first_step is None:
            return
        if step == self._first_step - 2:
            self._profile = profile(
                activities=supported_activities(),  # type: ignore[no-untyped-call]
                schedule=schedule(wait=0, warmup=1, active=PROFILED_STEPS, repeat=1),
                on_trace_ready=self._write,
                record_shapes=True,
                acc_events=True,
            )
            self._profile.start()
        elif self._profile is not None:
            self._profile.step()
            if step == self._first_step + PROFILED_STEPS - 1:
                self.close()

    def close(self) -> None:
        """End it, with the steps that were watched so far."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, found: profile) -> None:
        """Leave the file, or say why there is none: a run does not end for it."""
        try:
            self._path.parent.mkdir(exist_ok=True)
            found.export_chrome_trace(str(self._path))
        except OSError as error:
            self._engine.say(f"WARNING: no profile: {self._path} could not be written: {error}")
            with suppress(OSError):
                self._path.unlink()
        else:
            self._engine.say(f"profile in {self._path}, for https://ui.perfetto.dev")

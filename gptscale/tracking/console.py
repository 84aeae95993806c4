"""What a run shows while it trains: a progress bar on a terminal, plain lines anywhere else."""

import os
import sys
from typing import TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from gptscale.tracking.lines import checkpoint_line, evaluation_line, health_line, sample_line, train_line
from gptscale.tracking.tracker import Histograms, Record, View


class Pace:
    """Seconds per step, smoothed so that the last few records count most."""

    def __init__(self, first_step: int, first_time_s: float = 0.0) -> None:
        self._step, self._time_s = float(first_step), first_time_s
        self._s_per_step: float | None = None

    def update(self, step: float, time_s: float) -> None:
        """Take the time of training until the step was finished."""
        if step <= self._step:
            return
        newest = (time_s - self._time_s) / (step - self._step)
        self._step, self._time_s = step, time_s
        self._s_per_step = newest if self._s_per_step is None else 0.7 * self._s_per_step + 0.3 * newest

    def left_s(self, total_steps: int) -> float | None:
        """Seconds until the last step; None before the first record."""
        return None if self._s_per_step is None else max(0.0, total_steps - self._step) * self._s_per_step


class Console(View):
    """A sink for people. It moves with the records alone; no thread redraws it."""

    name = "the console"

    def __init__(
        self, total_steps: int, first_step: int = 0, stream: TextIO | None = None, first_time_s: float = 0.0
    ) -> None:
        self._total_steps, self._first_step = total_steps, first_step
        self._stream = stream or sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # stdout is None where closed
        self._pace = Pace(first_step, first_time_s)
        is_terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._bar = _bar(self._stream) if is_terminal else None

    def log(self, record: Record) -> None:
        """Show training where the bar is, and an evaluation above it."""
        if "train/loss" in record:
            self._pace.update(record["step"], record["time_s"])
            line = train_line(record, self._total_steps, self._pace.left_s(self._total_steps))
            self._progress(record["step"], line)
        if "val/loss" in record or "eval_train/loss" in record:
            self.say(evaluation_line(record, self._total_steps))
        if "health/spike_step" in record or record.get("health/skipped_steps"):
            self.say(health_line(record, self._total_steps))
        if "checkpoint/step" in record:
            self.say(checkpoint_line(record, self._total_steps))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Show the sample above the bar."""
        self.say(sample_line(step, prompt, text))

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar:
            self._bar.console.print(self._writable(text))
        else:
            print(self._writable(text), file=self._stream, flush=True)

    def histograms(self, progress: Record, found: Histograms) -> None:
        """Nothing: they do not fit on a line."""

    def close(self, failed: bool = False) -> None:
        """Leave the bar where it stands and give the terminal back."""
        if self._bar:
            self._bar.stop()

    def _progress(self, step: float, line: str) -> None:
        if not self._bar:
            self.say(line)
            return
        if not self._bar.tasks:
            self._bar.add_task("", total=self._total_steps, completed=self._first_step)
            self._bar.start()
        self._bar.update(self._bar.tasks[0].id, completed=step, description=self._writable(line), refresh=True)

    def _writable(self, text: str) -> str:
        """Escape what the stream's encoding has no byte for."""
        encoding = self._stream.encoding or "utf-8"
        return text.encode(encoding, "backslashreplace").decode(encoding)


def _bar(stream: TextIO) -> Progress:
    """A bar and its text, which takes more lines on a narrow terminal."""
    return Progress(
        BarColumn(bar_width=16),
        TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold")),
        console=RichConsole(file=stream, force_terminal=True, markup=False, highlight=False, emoji=False),
        auto_refresh=False,
        redirect_stdout=stream is sys.stdout,
        redirect_stderr=sys.stderr is not None and sys.stderr.isatty(),  # a stderr that goes to a file stays there
    )

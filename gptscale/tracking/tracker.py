"""Where the records of a run go: to every sink on rank 0, nowhere on the other ranks."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from numpy import linspace

LOG = logging.getLogger(__name__)

Record = Mapping[str, float]
"""`step`, `tokens`, `epoch` and `time_s`, beside what was measured there."""


@dataclass(frozen=True)
class Histogram:
    """How often a tensor's values fall into bins of one width."""

    low: float
    """Where the first bin begins."""
    high: float
    """Where the last bin ends; it holds this value too."""
    counts: Sequence[int]

    @property
    def edges(self) -> list[float]:
        """The ends of all bins, one more than there are bins."""
        return linspace(self.low, self.high, len(self.counts) + 1).tolist()  # type: ignore[no-any-return]


Histograms = Mapping[str, Histogram]
"""By the tensor's name, after `parameters/` or `gradients/`."""


class Sink(Protocol):
    """A place that keeps or shows records."""

    @property
    def name(self) -> str:
        """What a reader knows it by."""

    @property
    def required(self) -> bool:
        """Whether a failure ends the run; a view fails alone."""

    def log(self, record: Record) -> None:
        """Take the measurements of one step."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Take the text that the model wrote after the prompt."""

    def histograms(self, progress: Record, found: Histograms) -> None:
        """Take the histograms of one step; progress is a record without measurements."""

    def flush(self) -> None:
        """Return when what was taken would survive a power cut, where that is this sink's business."""

    def close(self, failed: bool) -> None:
        """Finish; the run ended with an exception if it failed."""


class View:
    """What is common to sinks that only show: one that fails is left behind, and nothing of it need be safe."""

    required = False

    def flush(self) -> None:
        """Nothing."""


class Relay(ABC):
    """Hands on what is recorded, to one sink or several."""

    @abstractmethod
    def _tell(self, act: Callable[[Sink], None]) -> None:
        """Have it done to each sink that is to hear of it."""

    def log(self, record: Record) -> None:
        """Record the measurements of one step."""
        self._tell(lambda sink: sink.log(record))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Record the text that the model wrote after the prompt."""
        self._tell(lambda sink: sink.sample(step, prompt, text))

    def histograms(self, progress: Record, found: Histograms) -> None:
        """Record the histograms of one step."""
        self._tell(lambda sink: sink.histograms(progress, found))


class Tracker(Relay):
    """Hands every record to every sink, in the order given; a context manager that closes them.

    One rank keeps the record, so a failure of it waits for `check`, where the ranks can agree to end.
    """

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = list(sinks)
        self._failure: Exception | None = None

    def flush(self) -> None:
        """Make what was recorded safe, before a checkpoint that counts on it; raises what `check` raises."""
        self._tell(lambda sink: sink.flush())
        self.check()

    def check(self) -> None:
        """Raise what kept the record from being written, if something did."""
        if self._failure is not None:
            raise self._failure

    def close(self, failed: bool = False) -> None:
        """Close every sink once, the views before the record."""
        sinks, self._sinks = self._sinks, []
        for sink in sorted(sinks, key=lambda sink: sink.required):
            _attempt(sink, lambda sink: sink.close(failed))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close(failed=kind is not None)

    def _tell(self, act: Callable[[Sink], None]) -> None:
        try:
            self._sinks = [sink for sink in self._sinks if _attempt(sink, act)]
        except Exception as error:
            self._failure = self._failure or error


def _attempt(sink: Sink, act: Callable[[Sink], None]) -> bool:
    """Say whether it went well; a view that fails is left behind with a warning, never the run."""
    try:
        act(sink)
    except Exception as error:
        if sink.required:
            raise
        warn_of(sink.name, error)
        return False
    return True


def warn_of(name: str, error: BaseException) -> None:
    """Say that a view has failed, and what becomes of it."""
    told = "%s failed (%s: %s) and is off until the next start; training and log.jsonl go on"
    LOG.warning(told, name, type(error).__name__, error)

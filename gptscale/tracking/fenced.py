"""A sink that falls silent when another start of the run has taken over."""

from collections.abc import Callable

from gptscale.tracking.tracker import Relay, Sink


class Fenced(Relay):
    """Passes on to a sink while this start may still write; the loop finds out and ends at its next step."""

    def __init__(self, sink: Sink, holds: Callable[[], bool]) -> None:
        self.name, self.required = sink.name, sink.required
        self._sink = sink
        self._holds = holds

    def flush(self) -> None:
        """Harmless in any case: what was taken was taken in time."""
        self._sink.flush()

    def close(self, failed: bool) -> None:
        """Close the sink; a view of a run that goes on elsewhere is not to be marked as ended."""
        if self.required or self._holds():
            self._sink.close(failed)

    def _tell(self, act: Callable[[Sink], None]) -> None:
        if self._holds():
            act(self._sink)

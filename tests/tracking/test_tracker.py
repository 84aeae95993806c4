import logging
from pathlib import Path

import pytest

from gptscale.errors import TrainingError
from gptscale.tracking.console import Console
from gptscale.tracking.jsonl import JsonlSink
from gptscale.tracking.tracker import Histogram, Histograms, Record, Tracker


class Notebook:
    """A sink that remembers its calls, or fails at each."""

    def __init__(self, name: str = "", required: bool = False, error: Exception | None = None) -> None:
        self.name, self.required, self.error = name, required, error
        self.calls: list[tuple[object, ...]] = []

    def log(self, record: Record) -> None:
        self._take("log", record)

    def sample(self, step: int, prompt: str, text: str) -> None:
        self._take("sample", step, prompt, text)

    def histograms(self, progress: Record, found: Histograms) -> None:
        self._take("histograms", progress, found)

    def flush(self) -> None:
        self._take("flush")

    def close(self, failed: bool) -> None:
        self._take("close", failed)

    def _take(self, *call: object) -> None:
        self.calls.append(call)
        if self.error:
            raise self.error


def test_every_sink_gets_every_call() -> None:
    first, second = Notebook(), Notebook()
    with Tracker(first, second) as tracker:
        tracker.log({"step": 1})
        tracker.sample(1, "a", "b")
        tracker.histograms({"step": 1}, {"parameters/w": Histogram(0, 1, [3])})
        tracker.flush()
    assert first.calls == second.calls
    assert first.calls == [
        ("log", {"step": 1}),
        ("sample", 1, "a", "b"),
        ("histograms", {"step": 1}, {"parameters/w": Histogram(0, 1, [3])}),
        ("flush",),
        ("close", False),
    ]


def test_a_tracker_without_sinks_does_nothing() -> None:
    with Tracker() as tracker:
        tracker.log({"step": 1})
        tracker.sample(1, "a", "b")


def test_a_view_that_fails_is_left_out_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    view, record = Notebook("TensorBoard", error=ConnectionResetError("Connection lost")), Notebook(required=True)
    with caplog.at_level(logging.WARNING), Tracker(view, record) as tracker:
        tracker.log({"step": 1})
        tracker.log({"step": 2})
    assert view.calls == [("log", {"step": 1})]
    assert record.calls == [("log", {"step": 1}), ("log", {"step": 2}), ("close", False)]
    assert caplog.messages == [
        "TensorBoard failed (ConnectionResetError: Connection lost) and is off until the next start; "
        "training and log.jsonl go on"
    ]


def test_a_record_that_fails_ends_the_run() -> None:
    tracker = Tracker(Notebook(required=True, error=TrainingError("disk full")))
    tracker.log({"step": 1})  # on one rank; the others go on to where they all look
    for look in (tracker.check, tracker.flush):
        with pytest.raises(TrainingError, match="disk full"):
            look()


def test_a_run_that_raises_closes_its_sinks_as_failed() -> None:
    sink = Notebook()
    with pytest.raises(KeyError), Tracker(sink):
        raise KeyError
    assert sink.calls == [("close", True)]


def test_the_views_are_closed_before_a_record_that_cannot_be() -> None:
    record, view = Notebook(required=True, error=TrainingError("disk full")), Notebook()
    with pytest.raises(TrainingError, match="disk full"):
        Tracker(record, view).close()
    assert view.calls == [("close", False)]


def test_closing_twice_closes_once() -> None:
    sink = Notebook()
    tracker = Tracker(sink)
    tracker.close()
    tracker.close()
    assert sink.calls == [("close", False)]


def test_only_the_log_is_required(tmp_path: Path) -> None:
    log = JsonlSink(tmp_path)
    log.close()
    assert (log.required, Console(total_steps=1).required) == (True, False)

"""A view that works beside training: nobody waits for it, and its failure is its own."""

import logging
import subprocess
import sys
from threading import Event, current_thread
from typing import Any

import pytest

from gptscale.tracking.beside import Beside
from gptscale.tracking.tracker import Histogram, Histograms, Record


class Slow:
    """A view that waits for a sign before each of its calls, and may then fail."""

    name = "slow"
    required = False

    def __init__(self, error: BaseException | None = None) -> None:
        self.sign = Event()
        self.error = error
        self.calls: list[Any] = []

    def log(self, record: Record) -> None:
        self._take(record)

    def sample(self, step: int, prompt: str, text: str) -> None:
        self._take(step, prompt, text)

    def histograms(self, progress: Record, found: Histograms) -> None:
        self._take(progress, found)

    def flush(self) -> None:
        self._take("flush")

    def close(self, failed: bool) -> None:
        self._take("close", failed)

    def _take(self, *call: Any) -> None:
        assert self.sign.wait(10)
        self.calls.append((current_thread().name, *call))
        if self.error:
            raise self.error


def test_everything_arrives_in_its_order_and_nobody_waits_for_it() -> None:
    slow, found = Slow(), {"parameters/w": Histogram(0, 1, [3])}
    view = Beside("beside", lambda: slow, patience_s=lambda: 10)
    view.log({"step": 1})
    view.sample(1, "a", "b")
    view.histograms({"step": 2}, found)
    view.flush()
    assert slow.calls == []  # and yet all of it has returned
    slow.sign.set()
    view.close(True)
    assert slow.calls == [
        ("beside", {"step": 1}),
        ("beside", 1, "a", "b"),
        ("beside", {"step": 2}, found),
        ("beside", "close", True),
    ]


@pytest.mark.parametrize("error", [ConnectionResetError("Connection lost"), SystemExit("Connection lost")])
def test_a_failure_is_one_line_and_the_end_of_the_view(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow(error)
    slow.sign.set()
    view = Beside("W&B", lambda: slow, patience_s=lambda: 10)
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            view.log({"step": step})
        view.close(False)
    assert slow.calls == [("W&B", {"step": 0})]
    assert caplog.messages == [
        f"W&B failed ({type(error).__name__}: Connection lost) and is off until the next start; "
        "training and log.jsonl go on"
    ]


def test_a_view_that_hangs_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow()
    view = Beside("W&B", lambda: slow, patience_s=lambda: 0.1)
    view.log({"step": 1})
    with caplog.at_level(logging.WARNING):
        view.close(False)
    assert caplog.messages == ["W&B has not ended after 0 s and is left behind"]
    slow.sign.set()


HANGING = """
from threading import Event
from gptscale.tracking.beside import Beside
Beside("W&B", Event().wait, patience_s=lambda: 0.1).close(False)
"""


def test_a_view_that_hangs_does_not_keep_the_process_from_ending() -> None:
    assert subprocess.run([sys.executable, "-c", HANGING], timeout=60).returncode == 0


def test_a_view_that_does_not_open_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    view = Beside("W&B", lambda: None, patience_s=lambda: 10)
    view.log({"step": 1})
    view.close(False)
    assert caplog.messages == []


def test_a_view_that_has_failed_keeps_nothing_in_memory() -> None:
    slow = Slow(ConnectionResetError("Connection lost"))
    view = Beside("W&B", lambda: slow, patience_s=lambda: 10)
    view.log({"step": 1})
    slow.sign.set()
    view._thread.join(10)
    view.log({"step": 2})
    assert view._todo.empty()

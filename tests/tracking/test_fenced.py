"""A sink falls silent when another start has taken over."""

from typing import Any

import pytest

from gptscale.tracking.fenced import Fenced
from gptscale.tracking.tracker import Histogram


class Heard:
    name = "heard"

    def __init__(self, required: bool) -> None:
        self.required = required
        self.calls: list[Any] = []

    def log(self, record: Any) -> None:
        self.calls.append(record)

    def sample(self, step: int, prompt: str, text: str) -> None:
        self.calls.append(text)

    def histograms(self, progress: Any, found: Any) -> None:
        self.calls.append(found)

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self, failed: bool) -> None:
        self.calls.append(("close", failed))


@pytest.mark.parametrize(("required", "end"), [(True, [("close", True)]), (False, [])])
def test_a_sink_hears_nothing_after_the_fence_is_lost(required: bool, end: list[Any]) -> None:
    heard, holds = Heard(required), [True]
    sink = Fenced(heard, lambda: holds[0])
    sink.log({"step": 1})
    sink.sample(1, "a", "b")
    sink.histograms({"step": 1}, {})
    holds[0] = False
    sink.log({"step": 2})
    sink.sample(2, "a", "c")
    sink.histograms({"step": 2}, {"parameters/w": Histogram(0, 1, [3])})
    sink.close(True)  # a view of a run that goes on elsewhere is not marked as failed
    assert heard.calls == [{"step": 1}, "b", {}, *end]
    assert sink.required is required
    assert sink.name == "heard"


def test_a_sink_that_holds_is_closed() -> None:
    heard = Heard(required=False)
    sink = Fenced(heard, lambda: True)
    sink.flush()
    sink.close(False)
    assert heard.calls == ["flush", ("close", False)]

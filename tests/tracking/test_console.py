import io
import re

import pytest

from gptscale.tracking.console import Console, Pace


class Terminal(io.TextIOWrapper):
    """A terminal that keeps what is written to it."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        """What was written, without the control sequences."""
        self.seek(0)
        return re.sub(r"\x1b\[[0-9?]*[A-Za-z]|\r", "", self.read())


def training(step: int, time_s: float) -> dict[str, float]:
    return {"step": step, "time_s": time_s, "train/loss": 3.0, "train/perplexity": 20.1}


def test_without_a_terminal_every_record_is_a_plain_line() -> None:
    stream = io.StringIO()
    console = Console(100, stream=stream)
    console.say("training [bold]starts[/bold]")
    console.log(training(10, 20.0))
    console.log({"step": 10, "val/loss": 3.1, "val/perplexity": 22.2})
    console.sample(10, "a", "b")
    console.close()
    # 10 steps in 20 s: the other 90 take 180 s
    assert stream.getvalue().splitlines() == [
        "training [bold]starts[/bold]",
        "step 10/100  loss 3.000  ppl 20.1  left 0:03:00",
        "step 10/100  validation  loss 3.100  ppl 22.2",
        "step 10  sample  'a' -> 'b'",
    ]


def test_the_default_stream_is_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    Console(1).say("hello")
    assert capsys.readouterr().out == "hello\n"


def test_a_terminal_shows_the_last_training_record_and_keeps_the_evaluations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    console = Console(20, stream=terminal)
    console.log(training(10, 20.0))
    console.log({"step": 10, "val/loss": 3.1, "val/perplexity": 22.2})
    console.log(training(20, 40.0))
    console.close()
    text = terminal.text()
    assert "━ step 10/20  loss 3.000  ppl 20.1  left 0:00:20" in text
    assert re.search(r"^.*step 10/20  validation  loss 3.100  ppl 22.2\s*$", text, re.MULTILINE)
    assert text.rstrip().endswith("step 20/20  loss 3.000  ppl 20.1  left 0:00:00")


@pytest.mark.parametrize("columns", ["1", "10", "40"])
def test_a_narrow_terminal_with_a_narrow_encoding_breaks_nothing(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", columns)
    terminal = Terminal(encoding="ascii")
    console = Console(20, stream=terminal)
    console.log(training(10, 20.0))
    console.sample(10, "日本", "é")
    console.close()
    assert r"\xe9" in terminal.text() or int(columns) < 10


def test_a_stream_without_unicode_gets_escapes() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    Console(1, stream=stream).sample(1, "a", "é")
    stream.seek(0)
    assert stream.read() == "step 1  sample  'a' -> '\\xe9'\n"


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    Console(20, stream=terminal).log(training(10, 20.0))
    terminal.seek(0)
    assert terminal.read() == "step 10/20  loss 3.000  ppl 20.1  left 0:00:20\n"


def test_the_pace_starts_at_the_resumed_step_and_follows_the_last_records() -> None:
    pace = Pace(first_step=100)
    assert pace.left_s(200) is None
    pace.update(110, 10.0)  # 1 s per step, 90 steps left
    assert pace.left_s(200) == pytest.approx(90.0)
    pace.update(120, 40.0)  # 3 s per step: 0.7 * 1 + 0.3 * 3 = 1.6, 80 steps left
    assert pace.left_s(200) == pytest.approx(128.0)
    pace.update(120, 50.0)  # no step was done: nothing is learned
    assert pace.left_s(200) == pytest.approx(128.0)


def test_what_is_left_of_a_resumed_run_goes_by_the_steps_of_this_start() -> None:
    stream = io.StringIO()
    console = Console(30, first_step=20, stream=stream, first_time_s=100.0)
    console.log(training(21, 102.0))  # 2 s a step, 9 steps left
    assert stream.getvalue() == "step 21/30  loss 3.000  ppl 20.1  left 0:00:18\n"


def test_a_checkpoint_is_told() -> None:
    stream = io.StringIO()
    console = Console(100, stream=stream)
    cost = {"checkpoint/step": 8, "checkpoint/bytes": 1.5e9, "checkpoint/stall_s": 0.25, "checkpoint/durable_s": 12.0}
    console.log({"step": 9, **cost})
    assert stream.getvalue() == "step 8/100  checkpoint  1.5GB  stalled 0.25 s, safe after 12 s\n"

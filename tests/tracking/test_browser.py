"""The page of a run as a browser shows it; needs Chromium, whose Debian package is `chromium`."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gptscale.tracking.page import write_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

LOSSES = [8.0, 5.0, 6.0, 3.0, 4.0]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The page of a run of five records and two evaluations, in which a script hides."""
    run = tmp_path / "small"
    run.mkdir()
    records: list[dict[str, float | None]] = [
        {"step": step, "tokens": 64 * step, "epoch": step / 10, "time_s": float(step), "train/loss": loss}
        for step, loss in enumerate(LOSSES, start=1)
    ]
    for step, loss in ((0, 9.21875), (5, 3.46875)):
        found = {"val/loss": loss, "val/perplexity": 7.25, "val/bits_per_byte": 1.03125}
        records.append({"step": step, "tokens": 64 * step, "epoch": step / 10, "time_s": float(step), **found})
    (run / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in sorted(records, key=lambda r: r["step"] or 0)))
    sample = {"step": 5, "prompt": "a", "text": "</script><script>document.title = 'taken over'</script>"}
    (run / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    return write_page([run], tmp_path / "page.html")


class Cells(HTMLParser):
    """The rows of a page's first table."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(content[content.index("<table") : content.index("</table>")])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        self.rows[-1].append(data)


def shown(page: Path, *options: str) -> tuple[str, str]:
    """The document after its scripts have run, and what was said on the console."""
    assert BROWSER is not None
    fixed = ("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000")
    command = [BROWSER, *fixed, f"--user-data-dir={page.parent / 'browser'}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout, "".join(line for line in done.stderr.splitlines(keepends=True) if "CONSOLE" in line)


def test_what_is_drawn_and_written_is_the_record(page: Path) -> None:
    document, console = shown(page, "--dump-dom")
    assert console == ""
    assert "<title>gptscale report</title>" in document
    assert Cells(document[document.index('id="evaluations"') :]).rows == [
        ["step", "val loss", "perplexity", "bits/byte"],
        ["5", "3.4688", "7.25", "1.0313"],
        ["0", "9.2188", "7.25", "1.0313"],
    ]
    # The first curve is the training loss. On the screen y grows downwards; two points give the scale.
    drawn = re.search(r'class="js-line" d="M([^"]*)"', document[document.index('id="chart-loss"') :])
    assert drawn is not None
    points = [tuple(map(float, point.split(","))) for point in drawn[1].split("L")]
    (x0, y0), (x1, y1) = points[0], points[-1]
    assert y1 > y0 + 20
    steps = [1 + 4 * (x - x0) / (x1 - x0) for x, _ in points]
    losses = [LOSSES[0] + (LOSSES[-1] - LOSSES[0]) * (y - y0) / (y1 - y0) for _, y in points]
    assert steps == pytest.approx([1, 2, 3, 4, 5], abs=0.01)
    assert losses == pytest.approx(LOSSES, abs=0.05)


def test_the_best_evaluation_is_marked_and_each_is_a_point(page: Path) -> None:
    document, _ = shown(page, "--dump-dom")
    assert re.findall(r'<tr class="best"><td>(.*?)</td>', document) == ["5"]  # 3.46875 there, 9.21875 at 0
    chart = document[document.index('id="chart-loss"') : document.index('id="chart-perplexity"')]
    assert len(re.findall(r'<path class="point[^"]*"', chart)) == 2


def test_smoothed_curves_are_the_weighted_means(page: Path) -> None:
    page.write_text(page.read_text().replace("smoothing = 1;", "smoothing = 2;"))
    document, console = shown(page, "--dump-dom")
    assert console == ""
    lines = re.findall(r'class="js-line" d="M([^"]*)"', document[document.index('id="chart-loss"') :])
    # Halving weights: 8, (8/2 + 5) / 1.5, (8/4 + 5/2 + 6) / 1.75, ...
    expected = [8, 6, 6, 4.4, 130 / 31]
    raw, smooth = ([float(point.split(",")[1]) for point in line.split("L")] for line in lines[:2])
    scale = (LOSSES[0] - LOSSES[3]) / (raw[3] - raw[0])
    assert [LOSSES[0] - (y - raw[0]) * scale for y in smooth] == pytest.approx(expected, abs=0.05)


def test_a_broken_page_is_heard_of(page: Path) -> None:
    page.write_text(page.read_text().replace("words(); draw();", "words(); draw(); nothing.at.all;"))
    _, console = shown(page, "--dump-dom")
    assert "nothing is not defined" in console


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(page: Path, width: int) -> None:
    # A frame is as narrow as a phone, which a window of a desktop cannot be.
    frame = page.with_name("frame.html")
    frame.write_text(
        f"""<iframe src="{page.name}" style="width: {width}px; height: 900px; border: 0"></iframe>
        <script>
        addEventListener("load", () => setTimeout(() => {{
          const inside = document.querySelector("iframe").contentDocument;
          const ends = [...inside.querySelectorAll(".main-svg")].map(drawing => drawing.getBoundingClientRect().right);
          document.title = inside.documentElement.scrollWidth + " " + Math.max(...ends);
        }}, 1000))
        </script>"""
    )
    document, _ = shown(frame, "--dump-dom", "--allow-file-access-from-files", "--hide-scrollbars")
    assert f"<title>{width} {width - 16}</title>" in document  # the body's padding is 16

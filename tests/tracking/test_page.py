import json
import re
from html.parser import HTMLParser
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from gptscale.errors import TrainingError
from gptscale.tracking import page
from gptscale.tracking.live import live_server
from gptscale.tracking.page import page_data, write_page


class Page(HTMLParser):
    """The attributes of a page's tags, and the text inside its scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag == "script":
            self.scripts.append("")
        self._inside = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])


RECORDS: list[dict[str, float | None]] = [
    {"step": 0, "tokens": 0, "epoch": 0.0, "time_s": 0.0, "val/loss": 5.0, "val/web/loss": 5.5},
    {"step": 10, "tokens": 640, "epoch": 0.1, "time_s": 2.0, "train/loss": None, "health/skipped_steps": 2},
    {"step": 10, "tokens": 640, "epoch": 0.1, "time_s": 2.0, "checkpoint/step": 5, "checkpoint/bytes": 1500.0, "checkpoint/durable_s": 0.5},
    {"step": 15, "tokens": 960, "epoch": 0.15, "time_s": 3.0, "health/spike_step": 14, "health/spike_loss": 9.0, "health/spike_z": 12.0},
    {"step": 20, "tokens": 1280, "epoch": 0.2, "time_s": 4.0, "train/loss": 4.25, "health/skipped_steps": 0},
    {"step": 20, "tokens": 1280, "epoch": 0.2, "time_s": 4.0, "health/spike_step": 23, "health/spike_loss": 8.0, "health/spike_z": 11.0, "health/skipped_samples": 16},
]  # fmt: skip


def made_run(folder: Path, lr: str = "1.0e-3") -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    sample = {"step": 20, "prompt": "a", "text": "</script><script>alert(1)</script>"}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    start = {"time": "2026-01-01", "from_step": 0, "world": 2, "device": "CPU"}
    (folder / "provenance.json").write_text(json.dumps({"starts": [start, {**start, "from_step": 10}]}))
    (folder / "config.yaml").write_text(
        f"run: {{dir: {folder}}}\ndata: {{dir: c, source: {{path: t}}}}\ntrain: {{steps: 20}}\n"
        f"optim: {{lr_peak: {lr}, lr_floor: 0}}\n"
    )
    return folder


def test_the_page_holds_the_record_and_needs_nothing_from_outside(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tiny")
    page = Page(write_page([run], run / "report" / "index.html"))
    assert page.data["runs"][0]["records"] == RECORDS
    assert page.data["runs"][0]["config"] == (run / "config.yaml").read_text()
    assert not [name for name, value in page.attributes if name in ("src", "href") and value]
    assert "plotly.js v" in page.scripts[1][:200]
    assert ("name", "viewport") in page.attributes
    policy = next(value for name, value in page.attributes if name == "content" and value and "default-src" in value)
    assert "default-src 'none'" in policy


def test_a_samples_text_cannot_end_the_data(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tiny")
    page = Page(write_page([run], tmp_path / "page.html"))
    assert len(page.scripts) == 3
    assert page.data["runs"][0]["samples"][0]["text"] == "</script><script>alert(1)</script>"


def test_half_a_surrogate_pair_is_written_as_in_the_log(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tiny")
    with (run / "samples.jsonl").open("a") as file:
        file.write('{"step": 20, "prompt": "caf\\udce9", "text": "b"}\n')
    page = Page(write_page([run], tmp_path / "page.html"))
    assert page.data["runs"][0]["samples"][1]["prompt"] == "caf\udce9"


def test_resumes_checkpoints_skips_spikes_and_rollbacks_are_events(tmp_path: Path) -> None:
    events = page_data([made_run(tmp_path / "tiny")])["runs"][0]["events"]
    assert [(e["step"], e["kind"]) for e in events] == [
        (0, "evaluation"),
        (5, "checkpoint"),
        (10, "resume"),
        (10, "skipped"),
        (14, "spike"),
        (20, "rollback"),
    ]
    assert events[-1]["text"] == (
        "loss 8.000 at step 23, 11.0 deviations above the median; went back here and left out 16 samples"
    )
    assert events[2]["text"] == "2026-01-01 from step 10 on 2 x CPU"


def test_resumes_before_a_run_began_anew_are_no_events(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tiny")
    starts = [{"time": f"day {day}", "from_step": step} for day, step in enumerate((0, 10, 0, 5))]
    (run / "provenance.json").write_text(json.dumps({"starts": starts}))
    events = page_data([run])["runs"][0]["events"]
    shown = ["day 2 from step 0 on 1 x ?", "day 3 from step 5 on 1 x ?"]
    assert [e["text"] for e in events if e["kind"] == "resume"] == shown


def test_of_a_long_run_every_nth_training_record_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptscale.tracking.page.MOST_RECORDS", 4)
    run = made_run(tmp_path / "tiny")
    records = [{"step": step, ("val" if step == 6 else "train") + "/loss": 4.0} for step in range(1, 13)]
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    shown = page_data([run])["runs"][0]
    assert shown["every"] == 3
    assert [record["step"] for record in shown["records"]] == [
        1,
        4,
        6,
        8,
        11,
        12,
    ]  # 12 of at most 4: every third of training


def test_a_record_without_all_of_an_event_is_none(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tiny")
    before = page_data([run])["runs"][0]["events"]
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 30, "checkpoint/step": 30}\n{"step": 30, "health/spike_step": 29}\n')
    assert page_data([run])["runs"][0]["events"] == before


def test_the_loss_chart_has_a_curve_for_every_named_set(tmp_path: Path) -> None:
    charts = page_data([made_run(tmp_path / "tiny")])["charts"]
    assert ("val/web/loss", "web") in charts[0]["curves"]


def test_the_speed_of_one_rank_is_a_curve_where_there_are_more(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tiny")
    speed = {"step": 30, "tokens": 1920, "train/tokens_per_s": 8.0, "train/tokens_per_s_per_gpu": 8.0}
    for of_one, curves in (
        (8.0, [("train/tokens_per_s", "")]),
        (4.0, [("train/tokens_per_s", "all ranks"), ("train/tokens_per_s_per_gpu", "one rank")]),
    ):
        with (run / "log.jsonl").open("a") as log:
            log.write(json.dumps({**speed, "train/tokens_per_s_per_gpu": of_one}) + "\n")
        charts = {chart["name"]: chart for chart in page_data([run])["charts"]}
        assert charts["throughput"]["curves"] == curves


def test_the_settings_in_which_runs_differ_are_listed(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / "a"), made_run(tmp_path / "b", lr="2.0e-3")]
    data = page_data(runs)
    assert [run["name"] for run in data["runs"]] == ["a", "b"]
    assert data["differences"] == [["run.dir", str(runs[0]), str(runs[1])], ["optim.lr_peak", "0.001", "0.002"]]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    runs = [made_run(tmp_path / "a"), made_run(tmp_path / "x" / "a")]
    assert [run["name"] for run in page_data(runs)["runs"]] == [str(path) for path in runs]


@pytest.mark.parametrize("content", ["{", "[" * 100_000, '{"starts": [{}, {"from_step": "ten"}, {"from_step": null}]}'])
def test_a_damaged_provenance_costs_only_its_events(tmp_path: Path, content: str) -> None:
    run = made_run(tmp_path / "tiny")
    (run / "provenance.json").write_text(content)
    assert "resume" not in {e["kind"] for e in page_data([run])["runs"][0]["events"]}


def test_a_page_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tiny")
    with pytest.raises(TrainingError, match=r"cannot write .*tiny: Is a directory; name another file with --to"):
        write_page([run], run)


def test_a_damaged_config_costs_only_its_text(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tiny")
    (run / "config.yaml").write_bytes(b"\xff")
    assert page_data([run])["runs"][0]["config"] == "\ufffd"


def test_a_folder_without_measurements_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"log\.jsonl holds no measurements; train first, or name another run"):
        page_data([tmp_path])


def test_a_live_page_is_served_on_loopback_and_grows_with_the_run(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tiny")
    with live_server([run], 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert server.server_address[0] == "127.0.0.1"
        address = f"http://127.0.0.1:{server.server_port}"
        assert re.search(rb'"live_s":\d+', urlopen(f"{address}/").read())
        before = json.loads(urlopen(f"{address}/data.json").read())
        with (run / "log.jsonl").open("a") as log:
            log.write('{"step": 30, "tokens": 1920, "epoch": 0.3, "time_s": 6.0, "train/loss": 4.0}\n')
        after = json.loads(urlopen(f"{address}/data.json").read())
        with pytest.raises(HTTPError, match="404") as refused:
            urlopen(f"{address}/config.yaml")
        refused.value.close()
        urlopen(Request(address, headers={"Host": "localhost:8265"})).close()
        with pytest.raises(HTTPError, match="403") as refused:  # a web page whose name leads to 127.0.0.1
            urlopen(Request(address, headers={"Host": f"example.com:{server.server_port}"}))
        refused.value.close()
        with pytest.raises(TrainingError, match=r"--port=\d+ cannot be used \(.*\); choose another, or 0 for any"):
            live_server([run], server.server_port)
        server.shutdown()
    assert len(after["runs"][0]["records"]) == len(before["runs"][0]["records"]) + 1


@pytest.mark.parametrize("beside", [1, 2])
def test_a_rhythm_of_other_records_takes_no_training_record_away(beside: int) -> None:
    records: list[dict[str, float]] = []
    for step in range(1, 101):
        records += [{"step": step, "train/loss": 3.0}, *({"step": step, "val/loss": 3.0} for _ in range(beside))]
    drawn = [r["step"] for r in page._thinned(records, 1 + beside) if "train/loss" in r]
    assert drawn == sorted({*range(1, 101, 1 + beside), 100})

import json
import math
import secrets
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import gptscale.tracking.jsonl as module
from gptscale import disk
from gptscale.errors import TrainingError
from gptscale.tracking.jsonl import JsonlSink, cut_back, read_histograms, read_log
from gptscale.tracking.tracker import Histogram


def write_run(run_dir: Path) -> None:
    sink = JsonlSink(run_dir)
    for step in (0, 10, 20):
        sink.log({"step": step, "train/loss": 3.5})
        sink.sample(step, "\n", f"text {step}")
        sink.histograms({"step": step, "tokens": 64 * step}, {"parameters/w": Histogram(0.0, 0.5, [1, 0])})
    sink.close()


def test_a_record_is_one_line_of_json(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "new")
    sink.log({"step": 10, "tokens": 640, "train/loss": 3.25})
    # no close: the line must have left the process already
    assert (tmp_path / "new" / "log.jsonl").read_bytes() == b'{"step": 10, "tokens": 640, "train/loss": 3.25}\n'
    sink.close()


def test_histograms_are_one_line_of_json_for_a_step(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    sink.histograms({"step": 3}, {"gradients/w": Histogram(-1.0, 1.0, [5, 0, 2])})
    assert (tmp_path / "histograms.jsonl").read_bytes() == (
        b'{"step": 3, "histograms": {"gradients/w": {"low": -1.0, "high": 1.0, "counts": [5, 0, 2]}}}\n'
    )
    sink.close()


def test_a_sample_may_hold_any_text(tmp_path: Path) -> None:
    text = 'two\nlines, "quotes", \x1b, é, 日本, \u2028, a lone half \ud83d'
    sink = JsonlSink(tmp_path)
    sink.sample(5, "\n", text)
    sink.close()
    lines = (tmp_path / "samples.jsonl").read_bytes().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 5, "prompt": "\n", "text": text}]
    assert "日本".encode() in lines[0]


def test_a_number_that_is_not_finite_is_null_on_disk_and_nan_in_memory(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    sink.log({"step": 1, "a": math.nan, "b": math.inf, "c": -math.inf})
    sink.close()
    path = tmp_path / "log.jsonl"
    assert path.read_text() == '{"step": 1, "a": null, "b": null, "c": null}\n'
    (record,) = read_log(path)
    assert record["step"] == 1
    assert all(math.isnan(record[key]) for key in "abc")


def test_a_flush_waits_until_every_line_is_on_disk(tmp_path: Path, on_disk: list[str]) -> None:
    sink = JsonlSink(tmp_path)
    sink.log({"step": 1})
    sink.histograms({"step": 1}, {"parameters/w": Histogram(0.0, 0.5, [1, 0])})
    assert on_disk == []  # only checkpoints are worth the wait
    sink.flush()
    assert sorted(on_disk) == ["sync histograms.jsonl", "sync log.jsonl", "sync samples.jsonl"]
    sink.close()


def test_a_second_start_appends(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_run(tmp_path)
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == [0, 10, 20, 0, 10, 20]


def test_a_run_without_a_log_has_no_records(tmp_path: Path) -> None:
    assert read_log(tmp_path / "log.jsonl") == []


@pytest.mark.parametrize("torn", [b'{"step": 3', b'{"step": 30, "text": "\xc3', b"\0\0\0", b'"step"\n', b"7"])
def test_a_torn_last_line_is_left_out(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 10}\n{"step": 20}\n' + torn)
    assert read_log(path) == [{"step": 10}, {"step": 20}]


def test_a_line_that_is_being_written_is_left_out_though_its_rest_comes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path := tmp_path / "log.jsonl").write_bytes(b'{"step": 10}\n{"step"')
    parsed = module._parsed

    def while_it_is_written(line: bytes) -> dict[str, Any] | None:
        if line == b'{"step"':
            with path.open("ab") as file:
                file.write(b': 20}\n{"step": 30}\n')
        return parsed(line)

    monkeypatch.setattr(module, "_parsed", while_it_is_written)
    assert read_log(path) == [{"step": 10}]
    assert read_log(path) == [{"step": 10}, {"step": 20}, {"step": 30}]


@pytest.mark.parametrize("torn", [b'{"step": 2', b"[" * 100_000])
def test_a_torn_line_in_the_middle_is_named(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 10}\n' + torn + b'\n{"step": 30}\n')
    with pytest.raises(TrainingError, match=r"log\.jsonl line 2 is not a whole record, and lines follow it"):
        read_log(path)


def test_what_is_no_number_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 10, "train/loss": "low"}\n')
    with pytest.raises(
        TrainingError, match=r"log.jsonl says train/loss='low' at step 10, which is no number; the file"
    ):
        read_log(path)


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(TrainingError, match=r"cannot read .*log.jsonl: Is a directory; mend that file's permissions"):
        read_log(tmp_path / "log.jsonl")


def test_cutting_back_keeps_the_step_and_all_before_it_in_every_file(tmp_path: Path) -> None:
    write_run(tmp_path)
    cut_back(tmp_path, 10)
    assert (tmp_path / "log.jsonl").read_text() == ('{"step": 0, "train/loss": 3.5}\n{"step": 10, "train/loss": 3.5}\n')
    assert (tmp_path / "samples.jsonl").read_text() == (
        '{"step": 0, "prompt": "\\n", "text": "text 0"}\n{"step": 10, "prompt": "\\n", "text": "text 10"}\n'
    )
    assert list(read_histograms(tmp_path / "histograms.jsonl")) == [
        ({"step": step, "tokens": 64 * step}, {"parameters/w": Histogram(0.0, 0.5, [1, 0])}) for step in (0, 10)
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["histograms.jsonl", "log.jsonl", "samples.jsonl"]


def test_histograms_that_are_written_while_they_are_read_are_left_to_who_writes_them(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = tmp_path / "histograms.jsonl"
    found = read_histograms(path)
    whole = path.read_text()
    with path.open("a") as file:
        file.write('{"step": 99, "tokens": 1, "histograms": {}}\n')
    assert [progress["step"] for progress, _ in found] == [json.loads(line)["step"] for line in whole.splitlines()]


def test_cutting_back_to_no_step_drops_everything(tmp_path: Path) -> None:
    write_run(tmp_path)
    cut_back(tmp_path, None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "log.jsonl": b"",
        "samples.jsonl": b"",
        "histograms.jsonl": b"",
    }


def test_cutting_back_mends_a_torn_end_so_that_the_next_record_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 10}\n{"step": 20, "tr')
    cut_back(tmp_path, 20)
    sink = JsonlSink(tmp_path)
    sink.log({"step": 20})
    sink.close()
    assert path.read_bytes() == b'{"step": 10}\n{"step": 20}\n'


def test_cutting_back_a_run_without_a_log_changes_nothing(tmp_path: Path) -> None:
    cut_back(tmp_path, 10)
    assert list(tmp_path.iterdir()) == []


def test_cutting_back_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    before = (tmp_path / "log.jsonl").read_bytes()
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0" * 2 * size)
    disk.temporary_path(tmp_path / "log.jsonl").mkdir()  # the temporary file cannot be made
    with pytest.raises(TrainingError, match=r"cannot write .*log\.jsonl: Is a directory"):
        cut_back(tmp_path, 0)
    assert (tmp_path / "log.jsonl").read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_ends_the_run_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")  # every write to it fails as on a full disk
    sink = JsonlSink(tmp_path)
    with pytest.raises(TrainingError) as caught:
        sink.log({"step": 1})
    assert str(caught.value) == (
        f"cannot write {tmp_path / 'log.jsonl'}: No space left on device; free space or mend the permissions "
        "of that folder and start the same command again, it goes on from the last checkpoint"
    )
    with pytest.raises(TrainingError, match="No space left on device"):
        sink.close()  # the line is still waiting


def test_a_run_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(TrainingError, match=r"cannot write .*log\.jsonl: File exists"):
        JsonlSink(tmp_path / "run")


def test_cutting_back_holds_one_record_in_memory_and_not_the_file(tmp_path: Path) -> None:
    record = json.dumps({"step": 1, "histograms": {}, "pad": "x" * 2**18}).encode() + b"\n"
    (tmp_path / "histograms.jsonl").write_bytes(record * 64)  # 16 MiB
    tracemalloc.start()
    try:
        cut_back(tmp_path, 1)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert (tmp_path / "histograms.jsonl").read_bytes() == record * 64

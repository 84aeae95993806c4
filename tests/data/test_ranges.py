"""JSON Lines and Parquet are read where they are: any range of rows, across files, is that of a plain reading."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptscale.config.data import SourceConfig
from gptscale.data import jsonlines, parquet
from gptscale.data.sources import Source, open_source
from gptscale.data.texts import to_list
from gptscale.errors import DataError

TEXTS = [f"document {i} " + "é" * (i * 7 % 23) for i in range(37)]


def opened(path: Path, **fields: Any) -> Source:
    source = open_source(SourceConfig(path=str(path), **fields))
    assert isinstance(source, jsonlines.JsonLines | parquet.ParquetFiles)
    return source


def read(source: Source, start: int, stop: int) -> list[str]:
    return [text for texts in source.read(start, stop) for text in to_list(texts)]


def check_every_range(source: Source, expected: list[str]) -> None:
    assert len(source) == len(expected)
    for start in range(len(expected)):
        for stop in range(start + 1, len(expected) + 1):
            assert read(source, start, stop) == expected[start:stop]


@pytest.mark.parametrize("last_end", ["", "\n"])
@pytest.mark.parametrize("read_bytes", [1, 50, 2**20])
def test_every_range_of_json_lines(
    tmp_path: Path, last_end: str, read_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonlines, "_READ_BYTES", read_bytes)
    monkeypatch.setattr(jsonlines, "_INDEXED_LINES", 5)
    for name, texts in [("a", TEXTS[:11]), ("b", TEXTS[11:12]), ("c", TEXTS[12:])]:
        lines = "\n".join(json.dumps({"n": 1, "text": text}) for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(lines + last_end)
    check_every_range(opened(tmp_path), TEXTS)


@pytest.mark.parametrize("batch_bytes", [1, 10**9])
def test_every_range_of_parquet(tmp_path: Path, batch_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_BATCH_BYTES", batch_bytes)
    for name, texts in [("a", TEXTS[:11]), ("b", []), ("c", TEXTS[11:])]:
        table = pa.table({"n": pa.array(range(len(texts))), "text": pa.array(texts, pa.string())})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=4)
    check_every_range(opened(tmp_path), TEXTS)


def test_what_arrow_refuses_but_json_allows_is_read_line_by_line(tmp_path: Path) -> None:
    lines = [
        '{"text": "a\\ud800b"}',
        "",
        '{"text": null}',
        "  ",
        '{"other": 1}',
        '{"text": "\\u0000 x"}\r',
        '{"text": "y"}',
    ]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode())
    assert read(opened(tmp_path / "a.jsonl"), 0, 7) == ["a\ufffdb", "", "", "", "", "\0 x", "y"]


def test_a_later_line_that_holds_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": [1, 2]}\n')
    match = r"data.source.text_column=text: text in .*a.jsonl holds list \[1, 2\], not text"
    with pytest.raises(DataError, match=match):
        read(opened(tmp_path / "a.jsonl"), 0, 2)


@pytest.mark.parametrize(("line", "problem"), [("[1]", " holds no object"), ('{"text": ', ": Expecting value")])
def test_a_later_line_that_is_no_object_is_one_line(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + line + "\n")
    with pytest.raises(
        DataError, match=rf"data.source.path=.* cannot be read as json: a.jsonl, line 2{problem}.*; mend"
    ):
        read(opened(tmp_path / "a.jsonl"), 0, 2)


def test_a_list_of_objects_is_left_to_datasets(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "x"}, {"text": "y"}]')
    source = open_source(SourceConfig(path=str(tmp_path / "a.json")))
    assert not isinstance(source, jsonlines.JsonLines)
    assert read(source, 0, 2) == ["x", "y"]

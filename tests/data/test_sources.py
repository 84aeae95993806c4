"""Every kind of source gives its documents by number; every mistake is one line with its setting."""

import codecs
import errno
import gzip
import json
import os
import pickle
import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from gptscale.config.data import SourceConfig
from gptscale.data import file_identity
from gptscale.data.columns import text_columns
from gptscale.data.job import _pinned
from gptscale.data.manifest import Settings
from gptscale.data.sources import Source, Table, open_source
from gptscale.data.streamed import JsonStream, Streamed
from gptscale.data.texts import to_list
from gptscale.errors import DataError


def source(path: Path | str, **fields: Any) -> Source:
    return open_source(SourceConfig(path=str(path), **fields))


def documents(path: Path | str, **fields: Any) -> list[str]:
    opened = source(path, **fields)
    return read(opened, 0, len(opened))


def read(opened: Source, start: int, stop: int) -> list[str]:
    return [text for texts in opened.read(start, stop) for text in to_list(texts)]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("file", ["one\ntwo\n\nthree\n"]),
        ("paragraph", ["one\ntwo", "three\n"]),
        ("line", ["one", "two", "", "three"]),
    ],
)
def test_text_is_read_by_file_paragraph_or_line(tmp_path: Path, by: str, expected: list[str]) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    assert documents(tmp_path / "a.txt", documents=by) == expected


def test_a_folder_gives_its_files_in_order_and_any_range_of_them(tmp_path: Path) -> None:
    for name in ["b.txt", "a.txt", "c.txt"]:
        (tmp_path / name).write_text(name)
    opened = source(tmp_path)
    assert len(opened) == 3
    assert read(opened, 1, 3) == ["b.txt", "c.txt"]
    assert [file["name"] for file in opened.description["files"]] == ["a.txt", "b.txt", "c.txt"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a [1].txt", "a?.txt", "a*.txt", "v?/a.txt"])
def test_what_stands_in_a_name_is_no_pattern(tmp_path: Path, name: str, streaming: bool) -> None:
    for path in (name, "a 1.txt", "ab.txt", "vb/a.txt"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(path)
    opened = open_source(SourceConfig(path=str(tmp_path / name), streaming=streaming))
    assert documents_of_any(opened) == [name]
    assert sorted(documents_of_any(open_source(SourceConfig(path=str(tmp_path), streaming=streaming)))) == sorted(
        [name, "a 1.txt", "ab.txt", "vb/a.txt"]
    )


def test_a_name_that_datasets_takes_apart_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "std::vector.txt").write_text("x")
    with pytest.raises(DataError, match=r"std::vector.txt has :: in its name, which datasets takes for two files; ren"):
        source(tmp_path / "std::vector.txt")


@pytest.mark.parametrize("pattern", ["*/x.jsonl", "**/*.jsonl", "[ab]/x.jsonl"])
def test_files_of_a_glob_are_named_from_where_it_begins(tmp_path: Path, pattern: str) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_text('{"text": "x"}\n')
    found = source(f"{tmp_path}/{pattern}").description["files"]
    assert [file["name"] for file in found] == ["a/x.jsonl", "b/x.jsonl"]
    (tmp_path / "b" / "x.jsonl").unlink()  # then the bare name tells it, as it did before
    assert [file["name"] for file in source(f"{tmp_path}/{pattern}").description["files"]] == ["x.jsonl"]


def test_json_lines_parquet_and_gzip_are_read_and_null_is_empty(tmp_path: Path) -> None:
    lines = b'{"body": "x", "n": 1}\n{"body": null, "n": 2}\n'
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    pq.write_table(pa.table({"body": ["p", "q"]}), tmp_path / "c.parquet")
    assert documents(tmp_path / "a.jsonl", text_column="body") == ["x", ""]
    assert documents(tmp_path / "b.jsonl.gz", text_column="body") == ["x", ""]
    shutil.copy(tmp_path / "b.jsonl.gz", tmp_path / "B.JSONL.GZ")
    assert documents(tmp_path / "B.JSONL.GZ", text_column="body") == ["x", ""]
    assert documents(tmp_path / "c.parquet", text_column="body") == ["p", "q"]


def test_neighbours_in_two_pieces_of_a_table_are_never_joined() -> None:
    table = datasets.Dataset(pa.table({"text": pa.chunked_array([["a", "b"], ["c"]])}))
    opened = Table(table, text_columns(SourceConfig(path="x")), {})
    assert [to_list(texts) for texts in opened.read(1, 3)] == [["b"], ["c"]]  # which may have more than 2 GiB together


def test_text_of_any_arrow_type_is_text_in_parquet(tmp_path: Path) -> None:
    for column in [pa.array(["a", "b"]).dictionary_encode(), pa.array(["a", "b"], pa.string_view())]:
        pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
        assert documents(tmp_path / "a.parquet") == ["a", "b"]


def test_two_columns_of_one_name_are_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"text_column=text: column text of .*a.parquet holds two columns, not text$"):
        source(tmp_path / "a.parquet")


@pytest.mark.parametrize("extra", [2**64, [1, "a"], {"a": [{}, 1]}])
def test_columns_that_are_not_read_may_hold_anything(tmp_path: Path, extra: object) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"extra": extra, "text": "x"}) + "\n")
    assert documents(tmp_path / "a.jsonl") == ["x"]


def test_json_that_is_too_deep_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "a": ' + "[" * 10**5 + "]" * 10**5 + "}\n")
    with pytest.raises(DataError, match=r"cannot be read as json: a.jsonl, line 1: maximum recursion depth [^\n]*$"):
        source(tmp_path / "a.jsonl")


def test_empty_lines_before_the_first_object_are_empty_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n \n{"text": "x"}\n{"text": "y"}\n')
    assert documents(tmp_path / "a.jsonl") == ["", "", "x", "y"]


def test_the_description_is_json_and_names_what_was_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    description = json.loads(json.dumps(source(tmp_path / "a.jsonl").description))
    assert description.pop("files")[0]["bytes"] == 14
    assert description == {"path": str(tmp_path / "a.jsonl"), "kind": "json", "text_column": "text"}


def test_python_library_needs_no_files_and_no_network() -> None:
    opened = source("python-library")
    assert len(read(opened, 0, 3)) == 3
    assert opened.description["kind"] == "embedded"
    assert opened.description["python"].endswith(".".join(map(str, sys.version_info[:3])))
    with pytest.raises(DataError, match="data.source.path=perl is not embedded; the embedded corpus is python-library"):
        source("perl", format="embedded")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz", "a.jsonl.zst", "A.JSONL.ZST"])
def test_a_compressed_file_that_was_cut_short_is_one_line(tmp_path: Path, name: str, streaming: bool) -> None:
    lines = "".join(f'{{"text": "{random.Random(i).random()}"}}\n' for i in range(5000)).encode()
    packed = gzip.compress(lines) if name.endswith("gz") else zstandard.ZstdCompressor().compress(lines)
    (tmp_path / name).write_bytes(packed[: len(packed) // 2])
    match = rf"data.source.path=.*{name} cannot be (read|streamed)[^\n]*: [^\n]+$"
    with pytest.raises(DataError, match=match):
        documents_of_any(open_source(SourceConfig(path=str(tmp_path / name), streaming=streaming)))


def documents_of_any(opened: Source | Streamed) -> list[str]:
    if isinstance(opened, Streamed):
        return [text for file in streamed(opened) for text in file]
    return read(opened, 0, len(opened))


def test_a_parquet_file_whose_pages_are_damaged_is_one_line(tmp_path: Path) -> None:
    rows = [random.Random(i).random() for i in range(5000)]
    pq.write_table(pa.table({"text": list(map(str, rows))}), tmp_path / "a.parquet", compression="zstd")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[5000:9000] = bytes(4000)
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(
        DataError, match=r"data.source.path=.*a.parquet cannot be read as parquet: a.parquet: [^\n]+; mend"
    ):
        documents(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_that_is_gone_in_the_middle_is_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "a.parquet")
    opened = source(tmp_path / f"a.{kind}")
    (tmp_path / f"a.{kind}").unlink()
    with pytest.raises(DataError, match=rf"data.source.path=.*a.{kind} cannot be read[^\n]*: [^\n]*No such file"):
        read(opened, 0, 1)


def test_a_file_whose_lines_moved_in_the_middle_is_one_line_and_no_end(tmp_path: Path) -> None:
    (path := tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 3000)
    opened = source(path)
    path.write_text('{"text": "longer"}\n' * 3000)  # row 1024 was at byte 14,336, which is within a line now
    with pytest.raises(DataError, match=rf"data.source.path={path}: {path} has changed since it was opened[^\n]*$"):
        read(opened, 1024, 1500)


def test_a_parquet_page_that_is_not_as_its_checksum_says_is_one_line(tmp_path: Path) -> None:
    path, table = tmp_path / "a.parquet", pa.table({"text": ["first", "house", "mouse"]})
    pq.write_table(table, path, compression=None, use_dictionary=False, write_page_checksum=True)
    assert documents(path) == ["first", "house", "mouse"]
    path.write_bytes(path.read_bytes().replace(b"house", b"horse"))  # its other texts stand in the statistics too
    with pytest.raises(
        DataError, match=r"path=.*a.parquet cannot be read as parquet: a.parquet: [^\n]*CRC[^\n]*; mend"
    ):
        documents(path)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_that_became_shorter_in_the_middle_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"

    def write(rows: int) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * rows)
        pq.write_table(pa.table({"text": ["x"] * rows}), tmp_path / "a.parquet")

    write(9)
    opened = source(path)
    write(5)
    assert read(opened, 2, 5) == ["x"] * 3
    with pytest.raises(DataError, match=rf"data.source.path={path}: {path} has changed since it was opened[^\n]*$"):
        read(opened, 2, 6)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_one_file_of_many_with_other_columns_is_named(tmp_path: Path, kind: str) -> None:
    for name, column in [("a", "text"), ("b", "body"), ("c", "text")]:
        pq.write_table(pa.table({column: ["x"]}), tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({column: "x"}) + "\n")
    with pytest.raises(
        DataError, match=rf"data.source.text_column=text: text is no column of .*/b.{kind}; it has body"
    ):
        source(tmp_path, format={"jsonl": "json"}.get(kind, kind))


def test_a_missing_column_is_answered_with_those_that_exist(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x", "n": 1}\n')
    with pytest.raises(DataError, match=r"data.source.text_column=text: text is no column of .*; it has body, n"):
        source(tmp_path / "a.jsonl")


@pytest.mark.parametrize(("value", "kind"), [(5, "int"), (2**64, "int"), ({"a": 1}, "a structure")])
def test_a_column_that_is_no_text_is_refused(tmp_path: Path, value: object, kind: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": value}) + "\n")
    with pytest.raises(DataError, match=rf"data.source.text_column=text: column text of .* holds {kind}, not text"):
        source(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.txt", b"\xff\xfe", "text"),
        ("a.jsonl", b'{"text": ', "json"),
        ("a.parquet", b"PAR", "parquet"),
        ("a.jsonl.zst", bytes(range(256)), "json"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        DataError, match=rf"data.source.path=.*{name} cannot be read as {kind}: [^\n]+; mend that file, copy it"
    ):
        source(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"), [("b.txt", "café".encode("latin-1")), ("b.txt.gz", gzip.compress(os.urandom(999))[:500])]
)
def test_one_text_of_many_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "c.txt").write_text("fine")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"cannot be read as text: {name}: [^\n]+; mend that file"):
        source(tmp_path)


def test_a_document_that_is_too_long_for_datasets_is_told_how_to_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(*args: Any, **options: Any) -> None:
        raise RuntimeError("wrapped") from pa.ArrowCapacityError("array cannot contain more than 2147483646 bytes")

    (tmp_path / "a.txt").write_text("x")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"more than 2 GiB; cut it into several \(data.source.documents=paragraph"):
            open_source(SourceConfig(path=str(tmp_path / "a.txt"), streaming=streaming))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_empty_files_are_no_corpus(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf"data.source.path=.*{name} holds only empty files"):
        source(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt.gz", gzip.compress(b"")),
        ("a.txt.zst", zstandard.compress(b"")),
        ("a.jsonl.gz", gzip.compress(b"")),
        ("a.json", b"[]"),
        ("a.txt", b"\n\n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_of_which_datasets_makes_no_row_are_no_corpus(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"^data.source.path=.*{name} holds no documents; name files that hold text$"):
        source(tmp_path / name, **({"documents": "paragraph"} if "txt" in name else {}))


def test_a_table_without_rows_is_passed_over_but_alone_it_is_no_corpus(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["p"]}), tmp_path / "b.parquet")
    assert documents(tmp_path) == ["p"]
    with pytest.raises(DataError, match=r"data.source.path=.*a.parquet holds no documents"):
        source(tmp_path / "a.parquet")


def test_a_hub_split_without_rows_is_no_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    info, empty = SimpleNamespace(sha="0" * 40), datasets.Dataset.from_dict({"text": []})
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, path, revision: info)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: empty)
    with pytest.raises(DataError, match="data.source.path=owner/name holds no documents"):
        source("owner/name")


def test_a_hub_dataset_is_pinned_to_its_newest_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*args: Any, **options: Any) -> datasets.Dataset:
        asked.append((args, options))
        return datasets.Dataset.from_dict({"text": ["x", "y"]})

    info = SimpleNamespace(sha="0123456789abcdef")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, path, revision: info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    opened = source("owner/name", name="small")
    assert read(opened, 0, 2) == ["x", "y"]
    assert asked == [(("owner/name",), {"name": "small", "revision": "0123456789abcdef", "split": "train"})]
    assert opened.description == {
        "path": "owner/name", "kind": "hub", "name": "small", "split": "train",
        "revision": "0123456789abcdef", "text_column": "text",
    }  # fmt: skip


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(self: object, path: str, revision: str | None) -> None:
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(DataError, match=r"owner/name is no file or folder here.*\(ConnectionError: no route to host\)"):
        source("owner/name")
    with pytest.raises(DataError, match=r"owner/name is no path with data.source.format=hub, and the Hub gave no such"):
        source("owner/name", format="hub")


def test_a_hub_dataset_that_cannot_be_loaded_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **options: Any) -> None:
        raise ValueError("Unknown split")

    info = SimpleNamespace(sha="0123456789abcdef")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, path, revision: info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"split=tran, revision=0123456789ab cannot be loaded.*: Unknown split"):
        source("owner/name", split="tran")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.gz"])
def test_a_file_that_changed_under_its_old_time_is_read_again(tmp_path: Path, name: str) -> None:
    for text in ["first", "other"]:
        content = json.dumps({"text": text}) if "json" in name else text
        (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
        os.utime(tmp_path / name, ns=(10**18, 10**18))
        assert documents(tmp_path / name) == [text]


DATES = b'{"date": "2020-01-01", "text": "two"}\n{"date": "2021-05-06 00:00:00", "text": "three"}\n'
"""Text that a reader of JSON without a schema takes for times."""


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.jsonl", DATES),
        ("b.jsonl.gz", gzip.compress(DATES)),
        ("b.jsonl.zst", zstandard.ZstdCompressor().compress(DATES)),
        ("b.json", b"[" + DATES.strip().replace(b"\n", b",\n") + b"]"),
        ("b.json.gz", gzip.compress(DATES.replace(b", ", b",\n"))),
        ("b.jsonl", codecs.BOM_UTF8 + DATES),
        ("b.jsonl.gz", gzip.compress(codecs.BOM_UTF8 + DATES)),
        ("b.json", codecs.BOM_UTF8 + DATES.replace(b", ", b",\n")),
    ],
    ids=["lines", "gz", "zst", "list", "spread out", "mark", "mark in gz", "mark before spread out"],
)
def test_dates_in_json_stay_text(tmp_path: Path, name: str, content: bytes, streaming: bool) -> None:
    (tmp_path / "a.jsonl").write_text('{"date": "unknown", "text": "one"}\n')
    (tmp_path / name).write_bytes(content)
    (tmp_path / "c.jsonl").write_text("\n")
    options: dict[str, Any] = {"template": "{date}: {text}", "streaming": streaming}
    expected = ["unknown: one", "2020-01-01: two", "2021-05-06 00:00:00: three", ""]
    assert documents_of_any(open_source(SourceConfig(path=str(tmp_path), **options))) == expected
    for file, part in [("a.jsonl", expected[:1]), (name, expected[1:3]), ("c.jsonl", expected[3:])]:
        assert documents_of_any(open_source(SourceConfig(path=str(tmp_path / file), **options))) == part


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json"])
def test_a_file_of_json_that_is_converted_is_converted_once(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b'{"text":\n"x"}' if name == "a.json" else gzip.compress(b'{"text": "x"}\n')
    (tmp_path / name).write_bytes(content)
    real, read_files = JsonStream.read_file, list[int]()
    monkeypatch.setattr(JsonStream, "read_file", lambda self, n: read_files.append(n) or real(self, n))
    assert documents(tmp_path / name) == documents(tmp_path / name) == ["x"]
    monkeypatch.chdir(tmp_path)
    assert documents(f"./{name}") == ["x"]  # however the path is spelled
    assert read_files == [0]
    assert source(tmp_path / name).description["parser"] == 2
    assert documents(tmp_path / name, template="{text}!") == ["x!"]
    assert read_files == [0, 0]
    monkeypatch.setattr("gptscale.data.cache_room.shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(DataError, match="as Arrow in the cache .*, and 0.0 GB are free there"):
        documents(tmp_path / name, template="{text}?")  # another copy needs room of its own


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"text": "x"}, "y"]', "cannot be read as json: a.json holds 'y', which is no object; mend"),
        ('[{"text": "x"}', r"cannot be read as json: a.json: Expecting ',' delimiter"),
        ("[" * 10**5, "cannot be read as json: a.json: maximum recursion depth"),
        ('[{"body": "x"}]', "text is no column of .*a.json; it has body$"),
        ('[{"text": 1}]', "column text of .*a.json holds int, not text$"),
        ('[{"text": "x"}, {"text": 1.5}]', "text in .*a.json holds float 1.5, not text$"),
        ("[]\n", "a.json holds no documents; name files that hold text$"),
    ],
)
def test_json_that_holds_no_texts_is_one_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=said):
        source(tmp_path / "a.json")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        b'{"text": "caf\xe9", "n": "\xff"}\n{"text": "x"}\n',
        b'{"text": "caf\xe9"}\n\n{"text": "x"}',
        b'{"text": "caf\xe9"}\n{"text": "x", "n": "half \\ud83d"}\n',
        b'{"text":\n"caf\xe9"}\n{"text": "x"}\n',
    ],
    ids=["first line", "blank line", "half a pair", "spread out"],
)
def test_bytes_that_are_no_utf8_are_mended_whatever_stands_beside_them(
    tmp_path: Path, content: bytes, streaming: bool
) -> None:
    (tmp_path / "a.json").write_bytes(content)
    found = documents_of_any(open_source(SourceConfig(path=str(tmp_path / "a.json"), streaming=streaming)))
    assert [text for text in found if text] == ["caf\ufffd", "x"]


def test_line_ends_of_text_become_newlines_and_those_in_json_stay(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\rthree\n")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one\\r\\ntwo"}\n')
    assert documents(tmp_path / "a.txt") == ["one\ntwo\nthree\n"]
    assert documents(tmp_path / "a.jsonl") == ["one\r\ntwo"]


def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a.txt").write_text("x")
    monkeypatch.setattr(file_identity, "hash_file", forbidden)
    with pytest.raises(DataError, match=r"data.source.path=.*a.txt cannot be read: Permission denied$"):
        source(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"data.source.path=[^ ]* cannot be read: Permission denied \(.*/a.txt\)$"):
        source(tmp_path)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("~nosuchuser/x.txt", "begins with the home of a user"),
        ("/" + "x" * 300, "cannot be read: File name too long$"),
        ("x" * 296 + ".txt", "cannot be read: File name too long$"),
        ("/dev/null", "is neither a file nor a folder"),
    ],
)
def test_a_path_that_no_file_can_have_is_one_line(path: str, text: str) -> None:
    with pytest.raises(DataError, match=rf"^data.source.path={path} {text}"):
        source(path)


def streamed(opened: Any) -> list[list[str]]:
    """The documents of each file of a stream."""
    assert isinstance(opened, Streamed)
    return [[text for texts in opened.read_file(i) for text in to_list(texts)] for i in range(opened.files)]


def test_zstandard_and_arrow_are_read_and_a_saved_datasets_own_json_is_passed_over(tmp_path: Path) -> None:
    packed = zstandard.ZstdCompressor().compress(b'{"text": "x"}\n')
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    (tmp_path / "b.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(b"one\ntwo"))
    assert documents(tmp_path / "a.jsonl.zst") == ["x"]
    assert documents(tmp_path / "b.txt.zst", documents="line") == ["one", "two"]
    datasets.Dataset.from_dict({"text": ["u", "v"]}).save_to_disk(tmp_path / "saved")
    assert documents(tmp_path / "saved") == ["u", "v"]


@pytest.mark.parametrize("kind", ["auto", "arrow"])
@pytest.mark.parametrize("pattern", ["", "*.arrow"])
def test_what_map_and_filter_leave_in_a_saved_dataset_is_not_read(tmp_path: Path, pattern: str, kind: str) -> None:
    datasets.Dataset.from_dict({"text": ["u", "v"]}).save_to_disk(tmp_path / "saved")
    saved = datasets.load_from_disk(tmp_path / "saved")
    saved.map(lambda row: {"text": row["text"].upper()})  # of the same columns, so that all of it could be read
    assert documents(tmp_path / "saved" / pattern, format=kind) == ["u", "v"]
    assert documents(tmp_path / "saved" / "cache-*.arrow", format="arrow") == ["U", "V"]  # who names them means them
    saved.filter(lambda row: row["text"] > "u")
    assert documents(tmp_path / "saved" / pattern, format=kind) == ["u", "v"]
    assert len(list((tmp_path / "saved").glob("cache-*.arrow"))) == 2


def test_splits_that_were_saved_together_are_not_mixed(tmp_path: Path) -> None:
    parts = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("validation", "train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"the splits test, train, validation of a saved dataset; .*=\S*/saved/train\)"):
        source(tmp_path / "saved")
    with pytest.raises(DataError, match=rf"=\S*/saved/train\), or all by a glob \({tmp_path}/\*\*/\*.arrow\)"):
        source(tmp_path)  # one of several datasets in a folder
    assert documents(tmp_path / "saved" / "train") == ["train"]
    assert documents(tmp_path / "**" / "*.arrow") == ["test", "train", "validation"]
    (tmp_path / "a.txt").write_text("beside them")
    assert documents(tmp_path, format="text") == ["beside them"]


def test_a_template_joins_the_columns_of_every_kind(tmp_path: Path) -> None:
    rows = {"title": ["A", "B"], "body": ["x", None]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"title": "A", "body": "x"}\n{"title": "B", "body": null}\n')
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "b.jsonl").read_bytes()))
    for name in ["a.parquet", "b.jsonl", "c.jsonl.gz"]:
        assert documents(tmp_path / name, template="{title}: {body}") == ["A: x", "B: "]
        assert source(tmp_path / name, template="{title}: {body}").description["template"] == "{title}: {body}"


def test_lengths_that_are_left_out_are_part_of_the_description(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert "min_characters" not in source(tmp_path / "a.txt").description
    limits = source(tmp_path / "a.txt", min_characters=1, max_characters=9).description
    assert (limits["min_characters"], limits["max_characters"]) == (1, 9)


def test_a_stream_is_opened_once_in_each_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    opened = open_source(SourceConfig(path=str(tmp_path), streaming=True))
    real, calls = datasets.load_dataset, []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: calls.append(args) or real(*args, **options))
    for stream in (opened, pickle.loads(pickle.dumps(opened))):
        assert streamed(stream) == [["a"], ["b"], ["c"]]
    assert len(calls) == 2
    assert "_stream" not in opened.__getstate__()


@pytest.mark.parametrize("name", ["b.jsonl", "b.jsonl.gz", "b.jsonl.zst"])
def test_json_lines_of_other_columns_are_streamed_as_they_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "n": 1}\n\n{"n": 2}\n{"text": "half \\ud83d"}')
    lines = b"\n" + b"".join(b'{"n": {"a": [1, "%d"]}, "text": "y%d"}\n' % (i, i) for i in range(9999))
    two_frames = b"".join(zstandard.ZstdCompressor().compress(part) for part in (lines[:999], lines[999:]))
    (tmp_path / name).write_bytes({".gz": gzip.compress(lines), ".zst": two_frames}.get(Path(name).suffix, lines))
    opened = open_source(SourceConfig(path=str(tmp_path), streaming=True))
    expected = [["x", "", "", "half \ufffd"], ["", *(f"y{i}" for i in range(9999))]]
    assert streamed(opened) == streamed(pickle.loads(pickle.dumps(opened))) == expected


def test_a_damaged_line_of_a_compressed_file_is_placed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n{"text": "y"}\n{"text": \n'))
    with pytest.raises(DataError, match=r"cannot be read as json: a.jsonl.gz, line 3: Expecting value"):
        streamed(open_source(SourceConfig(path=str(tmp_path), streaming=True)))


def test_one_list_of_json_is_streamed_too(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "x"}, {"text": "y"}]')
    assert streamed(open_source(SourceConfig(path=str(tmp_path), streaming=True))) == [["x", "y"]]


def test_streamed_files_are_units_of_their_own_and_leave_nothing_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "z"}\n'))
    before = set(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow"))
    opened = open_source(SourceConfig(path=str(tmp_path), streaming=True))
    assert streamed(opened) == [["x", "y"], ["z"]]
    assert opened.description["streaming"] is True
    assert set(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow")) == before


def test_a_stream_without_documents_and_one_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="holds no documents"):
        source(tmp_path / "a.parquet", streaming=True)
    (tmp_path / "b.parquet").write_bytes(b"PAR")
    with pytest.raises(
        DataError,
        match=r"data.source.path=.*b.parquet cannot be streamed: [^\n]+; run prepare again when it can be read",
    ):
        source(tmp_path / "b.parquet", streaming=True)


def test_the_file_in_whose_middle_a_stream_breaks_off_is_numbered(tmp_path: Path) -> None:
    for name, column in [("a", "text"), ("b", "body")]:
        pq.write_table(pa.table({column: ["x"]}), tmp_path / f"{name}.parquet")
    match = r"data.source.path=\S+, file 2 of 2, cannot be streamed: Couldn't cast body: string .*; run prepare again"
    with pytest.raises(DataError, match=match):
        streamed(open_source(SourceConfig(path=str(tmp_path), streaming=True)))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_whose_network_fails_in_the_middle_is_one_line(monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    def load_dataset(*args: Any, **options: Any) -> None:
        raise errors.HTTPError("timed out")

    errors: Any = huggingface_hub.errors  # whose base is that of the HTTP library, no OSError in newer versions
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match="(cannot be loaded from the Hub|cannot be streamed): timed out"):
        source("owner/name", revision="0" * 40, streaming=streaming)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, streaming: bool, packed: bool) -> None:
    content = codecs.BOM_UTF8 + b"one\ntwo"
    (tmp_path / ("a.txt.gz" if packed else "a.txt")).write_bytes(gzip.compress(content) if packed else content)
    assert documents_of_any(source(tmp_path, streaming=streaming)) == ["one\ntwo"]
    assert documents_of_any(source(tmp_path, streaming=streaming, documents="line")) == ["one", "two"]
    of_hub: Any = source(tmp_path, format="hub", revision="0" * 40, streaming=streaming)
    assert documents_of_any(of_hub) == ["one\ntwo"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("by", "expected"), [("file", ["one\ntwo\n\nthree\n"]), ("line", ["one", "two", "", "three"])])
def test_text_of_the_hub_is_cut_as_text_here_is(tmp_path: Path, by: str, expected: list[str], streaming: bool) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    opened: Any = source(tmp_path, format="hub", revision="0" * 40, documents=by, streaming=streaming)
    assert documents_of_any(opened) == expected
    assert opened.description.get("documents", "line") == by


def test_a_hub_dataset_can_be_streamed_from_chosen_files(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*args: Any, **options: Any) -> datasets.IterableDataset:
        asked.append((args, options))
        return datasets.Dataset.from_dict({"text": ["x", "y"]}).to_iterable_dataset(num_shards=2)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    fields: dict[str, Any] = {"revision": "0" * 40, "data_files": ["a-*.parquet"], "streaming": True}
    opened = source("owner/name", **fields)
    assert streamed(opened) == [["x"], ["y"]]
    assert asked[0] == (
        ("owner/name",),
        {"streaming": True, "name": None, "revision": "0" * 40, "split": "train", "data_files": ["a-*.parquet"]},
    )
    assert opened.description["data_files"] == ["a-*.parquet"]


def test_offline_the_revision_must_be_given_and_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(self: object, path: str, revision: str | None) -> None:
        pytest.fail("the Hub was asked")

    def load_dataset(*args: Any, **options: Any) -> datasets.Dataset:
        raise ConnectionError("Couldn't find any data file")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", ask)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"HF_HUB_OFFLINE forbids to ask.*set data.source.revision to the 40 digits"):
        source("owner/name")
    with pytest.raises(DataError, match=r"any data file; HF_HUB_OFFLINE is set: unset it, or point HF_HOME at a cache"):
        source("owner/name", revision="a" * 40)


def test_an_offline_cache_of_another_revision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_dict({"text": ["x"]})
    table.info.download_checksums = {f"hf://datasets/owner/name@{'b' * 40}/a.parquet": {}}
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: table)
    with pytest.raises(
        DataError, match=r"the cache holds hf://datasets/owner/name@bbb.*, not revision aaaaaaaaaaaa; unset"
    ):
        source("owner/name", revision="a" * 40)
    assert documents("owner/name", revision="b" * 40) == ["x"]


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text"))
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    with pytest.raises(
        DataError, match=r"the cache .*cache, where .*a.txt.gz is converted, cannot be made \(Not a dir"
    ):
        source(tmp_path / "a.txt.gz")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, r"takes more room than there is as Arrow in the cache .*; set HF_DATASETS"),
        (errno.EDQUOT, r"takes more room than there is as Arrow in the cache .*; set HF_DATASETS"),
        (
            errno.EFBIG,
            r"becomes larger as Arrow in the cache .* than a file may be there; raise the limit \(ulimit -f\)",
        ),
    ],
)
def test_a_cache_whose_disk_fills_up_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    def fill(*args: Any, **options: Any) -> None:
        try:
            raise OSError(code, os.strerror(code))
        except OSError as error:
            raise datasets.exceptions.DatasetGenerationError("An error occurred") from error

    (tmp_path / "a.txt").write_text("another text that no other test has")
    monkeypatch.setattr(datasets, "load_dataset", fill)
    with pytest.raises(DataError, match=rf"a.txt {said}[^\n]*$"):
        source(tmp_path / "a.txt")


def test_a_cache_that_has_no_room_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a text that no other test has")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3))
    with pytest.raises(
        DataError, match=r"takes about 0.0 GB as Arrow in the cache .*; set HF_DATASETS_CACHE to a folder"
    ):
        source(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("path", "named", "read"),
    [("a/b", None, "old"), ("a/b", "new", "new"), ("c/d", None, None), ("c/d", "new", "new")],
)
def test_a_corpus_stays_at_the_revision_it_was_begun_with_unless_the_config_names_another(
    path: str, named: str | None, read: str | None
) -> None:
    begun = Settings(
        tokenizer={},
        dtype="uint16",
        end_of_text=None,
        split="hash",
        validation_fraction=0.1,
        split_seed=0,
        documents_per_shard=1,
        source={"kind": "hub", "path": "a/b", "revision": "old"},
    )
    assert _pinned(SourceConfig(path=path, revision=named), begun).revision == read

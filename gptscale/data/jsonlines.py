"""JSON Lines, read where they are: a row is a line, and an index of every thousandth line finds any range of them."""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json as pj

from gptscale.data.columns import Columns
from gptscale.data.row_files import RowFiles
from gptscale.data.source_files import changed, unreadable, unreadable_is_said
from gptscale.data.texts import Texts, decode, list_texts
from gptscale.errors import DataError

_INDEXED_LINES = 1024
_READ_BYTES = 2**22
_NEWLINE = 10
_MARK = codecs.BOM_UTF8
_TYPES = {str: "string", type(None): "null", list: "a structure", dict: "a structure"}


@dataclass(frozen=True)
class JsonFile:
    """One file and where its lines 0, 1024, 2048, ... begin."""

    path: Path
    lines: int
    offsets: npt.NDArray[np.int64]


@dataclass(frozen=True)
class JsonLines(RowFiles):
    """The lines of several files, one after another; a line that holds no text is an empty document."""

    files: tuple[JsonFile, ...]

    def most_bytes(self) -> int:
        """The files' own."""
        return self.columns.most_bytes(sum(file.path.stat().st_size for file in self.files), len(self))

    def read_file(self, number: int, start: int, stop: int) -> Iterator[Texts]:
        """The texts of lines start to stop - 1 of one file, in batches."""
        parse = partial(parse_lines, file=self.files[number].path, columns=self.columns, path=self.path)
        with unreadable_is_said(self.path):
            yield from map(parse, _read_lines(self.files[number], start, stop, self.path))


def parse_lines(lines: bytes, file: Path, columns: Columns, path: str) -> Texts:
    """The texts of whole lines of a file; one that holds no text is an empty document."""
    table = _parse_fast(lines, columns.names)
    if table is not None:
        return columns.texts(table)
    # One line after another: what Arrow refuses, such as half of a surrogate pair, may be JSON all the same.
    rows = [_object(line, file, path) for line in lines.removesuffix(b"\n").split(b"\n")]
    return texts_of_rows(rows, file, columns)


def texts_of_rows(rows: Sequence[dict[str, Any]], file: Path, columns: Columns) -> Texts:
    """The texts of a file's objects. Raises DataError for a column that holds something else."""
    values = {name: [row.get(name) for row in rows] for name in columns.names}
    for name, column in values.items():
        for value in column:
            if value is not None and not isinstance(value, str):
                kind = type(value).__name__
                raise DataError(f"{columns.setting}: {name} in {file} holds {kind} {value!r:.40}, not text")
    table = pa.table({name: list_texts(value or "" for value in column) for name, column in values.items()})
    return columns.texts(table)


def open_json_lines(files: Sequence[Path], columns: Columns, path: str, description: dict[str, Any]) -> JsonLines:
    """Find where the files' lines begin. Raises DataError for a first line that lacks a column."""
    indexed = tuple(_index(file) for file in files)
    for file in indexed:
        check_first_line(file.path, columns, path)
    first_rows = tuple(accumulate((file.lines for file in indexed), initial=0))
    return JsonLines(first_rows, columns, path, description, indexed)


def is_json_lines(file: Path) -> bool:
    """Whether a file holds an object on its first line, rather than one list or a spread-out object, or only blanks."""
    with open_unpacked(file) as opened:
        lines = iter(partial(opened.readline, 2**16), b"")
        first = next((line.strip() for line in lines if line.strip()), b"")
    return not first or (first.startswith(b"{") and (first.endswith(b"}") or len(first) > 2**15))


def open_unpacked(file: Path) -> BinaryIO:
    """Open a file for reading behind its byte order mark; what its ending calls compressed is decompressed."""
    opened = _open_whole(file)
    if opened.peek(len(_MARK)).startswith(_MARK):  # type: ignore[attr-defined]  # all three kinds have it
        opened.read(len(_MARK))
    return opened


def _open_whole(file: Path) -> BinaryIO:
    suffix = file.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(file))
    if suffix == ".zst":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(file.open("rb"), read_across_frames=True)
        return io.BufferedReader(cast(io.RawIOBase, reader))
    return file.open("rb")


@contextmanager
def unpacking_is_said(file: Path, path: str) -> Iterator[None]:
    """Turn what a file cannot be read or decompressed for into a DataError."""
    try:
        yield
    except unpacking_errors() as error:
        raise unreadable(path, "json", f"{file.name}: {error}") from None


def unpacking_errors() -> tuple[type[Exception], ...]:
    """What is raised for a file that cannot be read or decompressed."""
    import zstandard

    return (OSError, EOFError, zlib.error, zstandard.ZstdError)


def _index(path: Path) -> JsonFile:
    with open_unpacked(path) as file:
        at = file.tell()
        starts, lines, last = [np.full(1, at, np.int64)], 0, b"\n"
        while content := file.read(_READ_BYTES):
            ends = np.flatnonzero(np.frombuffer(content, np.uint8) == _NEWLINE)
            following = ends[(-lines - 1) % _INDEXED_LINES :: _INDEXED_LINES] + 1 + at  # of lines 1024, 2048, ...
            starts.append(following)
            lines, at, last = lines + len(ends), at + len(content), content[-1:]
    return JsonFile(path, lines + (last != b"\n"), np.concatenate(starts))


def check_first_line(file: Path, columns: Columns, path: str) -> None:
    """Raise DataError if the first line that is not empty lacks a column."""
    with open_unpacked(file) as opened:
        first = next((line for line in iter(partial(opened.readline, _READ_BYTES), b"") if line.strip()), b"")
    if len(first) == _READ_BYTES:
        return  # such a line is parsed once, when its turn comes
    if first:
        check_row(_object(first, file, path), columns, file)


def check_row(row: dict[str, Any], columns: Columns, file: Path) -> None:
    """Raise DataError if an object of a file lacks a column."""
    columns.check({name: _TYPES.get(type(value), type(value).__name__) for name, value in row.items()}, file)


def _read_lines(file: JsonFile, start: int, stop: int, path: str) -> Iterator[bytes]:
    """The bytes of lines start to stop - 1, some megabytes of whole lines at a time."""
    with file.path.open("rb") as opened:
        opened.seek(int(file.offsets[start // _INDEXED_LINES]))
        for _ in range(start % _INDEXED_LINES):
            opened.readline()
        left = stop - start
        while left:
            *lines, count = _take_lines(opened, left)
            if not lines[0]:
                raise changed(path, file.path)
            left -= count
            yield lines.pop()  # not held here: a line may have hundreds of megabytes


def _take_lines(file: BinaryIO, most: int) -> tuple[bytes, int]:
    """Whole lines of a few megabytes or one longer line, most of them at most, and how many they are."""
    content = file.read(_READ_BYTES)
    ends = np.flatnonzero(np.frombuffer(content, np.uint8) == _NEWLINE)[:most]
    if len(ends) == 0:
        file.seek(-len(content), 1)
        return file.readline(), 1
    stop = int(ends[-1]) + 1
    if len(ends) < most and len(content) < _READ_BYTES and stop < len(content):
        return content, len(ends) + 1  # the last line of the file has no end
    file.seek(stop - len(content), 1)
    return content[:stop], len(ends)


def _parse_fast(lines: bytes, names: list[str]) -> Any | None:
    """The columns as Arrow reads them; None where it refuses, or passes over a line."""
    schema = pa.schema([(name, pa.large_string()) for name in names])
    options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    reading = pj.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    try:
        table = pj.read_json(pa.BufferReader(lines), reading, options)
    except pa.ArrowInvalid:
        return None
    return table if table.num_rows == lines.count(b"\n") + (not lines.endswith(b"\n")) else None


def _object(line: bytes, file: Path, path: str) -> dict[str, Any]:
    if not line.strip():
        return {}
    try:
        row = json.loads(decode(line))
    except (ValueError, RecursionError) as error:
        raise unreadable(path, "json", f"{_place(line, file, path)}: {error}") from None
    if not isinstance(row, dict):
        raise unreadable(path, "json", f"{_place(line, file, path)} holds no object")
    return row


def _place(line: bytes, file: Path, path: str) -> str:
    """The file's name and the number of the first line that reads so, which is as bad as any later one."""
    with open_unpacked(file) as opened:
        same = (n for n, found in enumerate(opened, 1) if found.rstrip(b"\n") == line.rstrip(b"\n"))
        number = next(same, None)
    if number is None:
        raise changed(path, file)
    return f"{file.name}, line {number:,}"

"""Sources whose files are read from beginning to end, each as a unit of its own."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gptscale.data.columns import Columns
from gptscale.data.jsonlines import check_first_line, is_json_lines, open_unpacked, parse_lines, unpacking_is_said
from gptscale.data.jsonvalues import parse_values
from gptscale.data.texts import Texts, to_list

_READ_BYTES = 2**22
_BATCH_ROWS = 256

PARSER = 2
"""What reads JSON that was left to `datasets` before, which made other rows of it; a corpus has units of one alone."""


@dataclass(frozen=True)
class Streamed(ABC):
    """Files to read one after another. How many documents one holds is not known before it was read."""

    files: int
    columns: Columns
    path: str
    description: dict[str, Any]

    @abstractmethod
    def read_file(self, number: int) -> Iterator[Texts]:
        """The texts of one file, in batches."""


@dataclass(frozen=True)
class JsonStream(Streamed):
    """JSON, compressed or not; a line of JSON Lines that holds no text is an empty document."""

    paths: tuple[Path, ...]

    def read_file(self, number: int) -> Iterator[Texts]:
        """The texts of one file, in batches."""
        file = self.paths[number]
        with unpacking_is_said(file, self.path):
            lines = is_json_lines(file)
            with open_unpacked(file) as opened:
                yield from (self._lines if lines else self._values)(opened, file)

    def _lines(self, opened: BinaryIO, file: Path) -> Iterator[Texts]:
        while lines := opened.readlines(_READ_BYTES):
            yield parse_lines(b"".join(lines), file, self.columns, self.path)

    def _values(self, opened: BinaryIO, file: Path) -> Iterator[Texts]:
        texts = parse_values(opened.read(), file, self.columns, self.path)
        for start in range(0, len(texts), _BATCH_ROWS):
            yield texts.slice(start, _BATCH_ROWS)


def open_json_stream(files: Sequence[Path], columns: Columns, path: str, description: dict[str, Any]) -> JsonStream:
    """Open JSON. Raises DataError for JSON Lines whose first line lacks a column; others are not looked into yet."""
    for file in files:
        with unpacking_is_said(file, path):
            if is_json_lines(file):
                check_first_line(file, columns, path)
            else:
                description["parser"] = PARSER
    return JsonStream(len(files), columns, path, description, tuple(files))


@dataclass(frozen=True)
class Rows:
    """The rows of a stream, which `datasets` knows by their identity alone, not by how the path to them is spelled."""

    stream: JsonStream
    identity: str

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (self.identity,)


def each_row(rows: Rows) -> Iterator[dict[str, str]]:
    """The texts one by one, as rows of the one column text."""
    for number in range(rows.stream.files):
        for texts in rows.stream.read_file(number):
            yield from ({"text": text} for text in to_list(texts))

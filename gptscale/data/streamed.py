"""Sources whose files are read from beginning to end, each as a unit of its own."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptscale.data.columns import Columns
from gptscale.data.jsonlines import check_first_line, is_json_lines, open_unpacked, parse_lines, unpacking_is_said
from gptscale.data.texts import Texts

_READ_BYTES = 2**22


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
    """JSON Lines, compressed or not; a line that holds no text is an empty document."""

    paths: tuple[Path, ...]

    def read_file(self, number: int) -> Iterator[Texts]:
        """The texts of one file, in batches."""
        file = self.paths[number]
        with unpacking_is_said(file, self.path), open_unpacked(file) as opened:
            while lines := opened.readlines(_READ_BYTES):
                yield parse_lines(b"".join(lines), file, self.columns, self.path)


def open_json_stream(
    files: Sequence[Path], columns: Columns, path: str, description: dict[str, Any]
) -> JsonStream | None:
    """Look at the first line of every file; None unless all hold JSON Lines.

    Raises DataError for a first line that lacks a column.
    """
    for file in files:
        with unpacking_is_said(file, path):
            if not is_json_lines(file):
                return None
            check_first_line(file, columns, path)
    return JsonStream(len(files), columns, path, description, tuple(files))

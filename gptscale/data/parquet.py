"""Parquet files, read where they are: no copy in a cache, and any range of rows without those before its row group."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gptscale.data.columns import Columns, arrow_types
from gptscale.data.row_files import RowFiles
from gptscale.data.source_files import changed, unreadable
from gptscale.data.texts import Texts
from gptscale.errors import first_line

_BATCH_BYTES = 2**22  # of text, as the row group's mean length has it; the tokenizer takes up to twice as much
_READ_BYTES = 2**20  # of a column at once, so that a row group is never in memory whole
_REPEATED_ROWS = 1024  # at once, where texts may be many times as large as the file says
_FOOTERS_AT_ONCE = 16  # they are small, and a network file system answers slowly


@dataclass(frozen=True)
class ParquetFiles(RowFiles):
    """The rows of several files, one after another."""

    files: tuple[Path, ...]
    column_bytes: int
    """Of the columns that are read, before compression; a text that a file keeps once for many rows counts once."""

    def most_bytes(self) -> int:
        """What the footers say of the columns."""
        return self.columns.most_bytes(self.column_bytes, len(self))

    def read_file(self, number: int, start: int, stop: int) -> Iterator[Texts]:
        """The texts of rows start to stop - 1 of one file, in batches."""
        with _unreadable_is_said(self.files[number], self.path), _opened(self.files[number]) as file:
            for batch in _read_rows(file, self.columns.names, start, stop):
                start += batch.num_rows
                yield self.columns.texts(batch)
        if start < stop:
            raise changed(self.path, self.files[number])


def open_parquet(files: Sequence[Path], columns: Columns, path: str, description: dict[str, Any]) -> ParquetFiles:
    """Read the files' footers. Raises DataError for a file that is no Parquet or lacks a column."""

    def rows_and_bytes(file: Path) -> tuple[int, int]:
        with _unreadable_is_said(file, path):
            footer = pq.read_metadata(file)
            columns.check(arrow_types(footer.schema.to_arrow_schema()), file)
            return int(footer.num_rows), _column_bytes(footer, columns.names)

    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
        counted = list(threads.map(rows_and_bytes, files))
    first_rows = tuple(accumulate((rows for rows, _ in counted), initial=0))
    column_bytes = sum(size for _, size in counted)
    return ParquetFiles(first_rows, columns, path, description, tuple(files), column_bytes)


def _opened(file: Path) -> Any:
    """A file to read rows from; a page that is not as its checksum says, where it has one, raises OSError."""
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_BYTES, page_checksum_verification=True)


def _column_bytes(footer: Any, names: Sequence[str]) -> int:
    groups = (footer.row_group(number) for number in range(footer.num_row_groups))
    chunks = (group.column(number) for group in groups for number in range(footer.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in names)


@contextmanager
def _unreadable_is_said(file: Path, path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, "parquet", f"{file.name}: {first_line(error)}") from None


def _read_rows(file: Any, names: list[str], start: int, stop: int) -> Iterator[Any]:
    """Record batches of rows start to stop - 1 of one file."""
    at = 0
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        rows = about.num_rows
        if start < at + rows and at < stop:
            size = max(1, min(_BATCH_BYTES * rows // max(1, about.total_byte_size), stop - at))
            if _may_repeat(about, names):
                size = min(size, _REPEATED_ROWS)
            for batch in file.iter_batches(size, row_groups=[group], columns=names, use_threads=False):
                cut = batch.slice(max(0, start - at), max(0, min(stop, at + batch.num_rows) - max(start, at)))
                at += batch.num_rows
                if cut.num_rows:
                    yield cut
                if at >= stop:
                    return
        else:
            at += rows


def _may_repeat(group: Any, names: Sequence[str]) -> bool:
    """Whether a column of a row group has a dictionary, in which a text stands once for many rows."""
    columns = (group.column(number) for number in range(group.num_columns))
    return any(column.has_dictionary_page for column in columns if column.path_in_schema in names)

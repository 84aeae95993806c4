"""What `datasets` raises for a source that cannot be read, and what it leaves unsaid."""

import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import pyarrow as pa

from gptscale.data.hub import connection_errors
from gptscale.data.jsonlines import open_unpacked, unpacking_errors

_REASON_CHARACTERS = 300
_READ_CHARACTERS = 2**20
_NO_ROWS = ("corresponds to no data", "at least one example when writing")


def failures(datasets: Any) -> tuple[type[Exception], ...]:
    """What `datasets` raises for data that is missing, cut short or of another shape; each format has its own."""
    own = datasets.exceptions.DatasetsError
    return (*unpacking_errors(), *connection_errors(), ValueError, RuntimeError, pa.ArrowException, own)


def reason(error: BaseException) -> str:
    """The innermost error in one line; it says what `datasets` only wraps."""
    error = innermost(error)
    if isinstance(error, pa.ArrowCapacityError):
        return "one document has more than 2 GiB; cut it into several (data.source.documents=paragraph or line does)"
    return shorten(str(error), _REASON_CHARACTERS) or type(error).__name__


def reason_in_text(error: BaseException, files: Sequence[Path]) -> str:
    """As `reason`, with the name of the file of plain text that is no UTF-8 or is cut short."""
    named = isinstance(innermost(error), _of_one_file())
    file = next((file for file in files if not _is_whole_text(file)), None) if named else None
    return f"{file.name}: {reason(error)}" if file else reason(error)


def is_without_rows(error: BaseException) -> bool:
    """Whether `datasets` failed because the files hold no document, for which it has no error of its own."""
    return any(words in str(innermost(error)) for words in _NO_ROWS)


def innermost(error: BaseException) -> BaseException:
    """The cause of an error that has none itself."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_whole_text(file: Path) -> bool:
    try:
        with open_unpacked(file) as opened, io.TextIOWrapper(opened, "utf-8") as text:
            while text.read(_READ_CHARACTERS):
                pass
    except _of_one_file():
        return False
    return True


def _of_one_file() -> tuple[type[Exception], ...]:
    return (UnicodeDecodeError, *unpacking_errors())

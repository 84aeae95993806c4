"""JSON that is not one object a line: lists of objects, and objects that are spread over lines. Read as a whole."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptscale.data.columns import Columns
from gptscale.data.jsonlines import check_row, texts_of_rows
from gptscale.data.source_files import unreadable
from gptscale.data.texts import Texts, decode

_SPACE = re.compile(r"[ \t\r\n]*")


def parse_values(content: bytes, file: Path, columns: Columns, path: str) -> Texts:
    """The texts of the objects that a file holds, one after another or in lists.

    Raises DataError for what is no object, and for one that lacks a column.
    """
    rows = list(_rows(decode(content), file, path))
    if rows:
        check_row(rows[0], columns, file)
    return texts_of_rows(rows, file, columns)


def _rows(text: str, file: Path, path: str) -> Iterator[dict[str, Any]]:
    decoder, at = json.JSONDecoder(), _behind_space(text, 0)
    while at < len(text):
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise unreadable(path, "json", f"{file.name}: {error}") from None
        for row in value if isinstance(value, list) else [value]:
            if not isinstance(row, dict):
                raise unreadable(path, "json", f"{file.name} holds {row!r:.40}, which is no object")
            yield row
        at = _behind_space(text, end)


def _behind_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()

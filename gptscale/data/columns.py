"""From the columns of a table to the text of each document: one column, or several joined by a template."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from string import Formatter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gptscale.config.data import SourceConfig
from gptscale.data.texts import Texts, as_texts
from gptscale.errors import DataError

_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Columns:
    """Which columns make a document's text: literals and column names by turns, as in '{title}: {body}'."""

    setting: str
    """The setting and its value, for errors."""
    parts: tuple[tuple[str, str | None], ...]
    """Each a literal and the column after it; the last may have none."""
    marked: bool = False
    """Whether a text may begin with a byte order mark, which is no text."""

    @property
    def names(self) -> list[str]:
        """The columns, each once."""
        return list(dict.fromkeys(name for _, name in self.parts if name is not None))

    def texts(self, table: Any) -> Texts:
        """The documents' texts, from a table or a record batch. A document whose columns are all empty is empty."""
        columns = {name: as_texts(table.column(name)) for name in self.names}
        if self.marked:
            columns = {name: pc.utf8_ltrim(column, _BYTE_ORDER_MARK) for name, column in columns.items()}
        if len(self.parts) == 1 and self.parts[0][0] == "":
            return columns[self.names[0]]
        joined = []
        for literal, name in self.parts:
            joined.append(pa.scalar(literal, pa.large_string()))
            if name is not None:
                joined.append(columns[name])
        whole = pc.binary_join_element_wise(*joined, pa.scalar("", pa.large_string()))
        filled = [pc.greater(pc.binary_length(column), 0) for column in columns.values()]
        return as_texts(pc.if_else(reduce(pc.or_, filled), whole, pa.scalar("", pa.large_string())))

    def most_bytes(self, column_bytes: int, rows: int) -> int:
        """What the texts of so many rows cannot exceed, if their columns together have so many bytes."""
        return column_bytes * len(self.parts) + rows * sum(len(literal.encode()) for literal, _ in self.parts)

    def check(self, types: dict[str, str], path: str | Path) -> None:
        """Raise DataError unless a table with these columns (name and Arrow type) has the ones needed, as text."""
        for name in self.names:
            if name not in types:
                raise DataError(f"{self.setting}: {name} is no column of {path}; it has {', '.join(types)}")
            if types[name] not in ("string", "large_string", "string_view", "null"):
                raise DataError(f"{self.setting}: column {name} of {path} holds {types[name]}, not text")


ONLY_TEXT = Columns("column text", (("", "text"),))
"""The one column of a source that has no choice of columns."""


def text_columns(cfg: SourceConfig) -> Columns:
    """The columns that data.source.template or data.source.text_column names."""
    if cfg.template is None:
        return Columns(f"data.source.text_column={cfg.text_column}", (("", cfg.text_column),))
    parts = tuple((literal, name) for literal, name, _, _ in Formatter().parse(cfg.template))
    return Columns(f"data.source.template={cfg.template!r}", parts)


def arrow_types(schema: Any) -> dict[str, str]:
    """An Arrow schema's column names and types, in words where no type of text is meant."""
    types = {field.name: _type(field.type) for field in schema}
    return types | {name: "two columns" for name in types if schema.names.count(name) > 1}


def _type(arrow_type: Any) -> str:
    if pa.types.is_nested(arrow_type):
        return "a structure"
    return str(arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type)


def describe_columns(cfg: SourceConfig) -> dict[str, Any]:
    """The choice of columns as it stands in a source's description."""
    return {"text_column": cfg.text_column} if cfg.template is None else {"template": cfg.template}


def long_enough(texts: Texts, cfg: SourceConfig) -> Sequence[bool] | None:
    """Which texts data.source.min_characters and max_characters keep; None where all are kept."""
    if cfg.min_characters is None and cfg.max_characters is None:
        return None
    lengths = pc.utf8_length(texts)
    low = pc.greater_equal(lengths, cfg.min_characters or 0)
    kept: Sequence[bool] = pc.and_(low, pc.less_equal(lengths, cfg.max_characters or 2**62))
    return kept

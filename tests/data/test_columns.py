"""Columns become a document's text, alone or joined, and its length decides whether it stays."""

import pyarrow as pa
import pytest

from gptscale.config.data import SourceConfig
from gptscale.config.load import parse_config
from gptscale.data.columns import arrow_types, long_enough, text_columns
from gptscale.data.texts import list_texts, to_list
from gptscale.errors import ConfigError, DataError

TABLE = pa.table({"title": ["A", None, "C", None], "body": ["x", "y", "", ""], "n": [1, 2, 3, 4]})


def source(**fields: object) -> SourceConfig:
    return SourceConfig.model_validate({"path": "x", **fields})


def test_one_column_is_taken_as_it_is() -> None:
    assert to_list(text_columns(source(text_column="body")).texts(TABLE)) == ["x", "y", "", ""]


def test_a_template_joins_columns_and_empty_ones_alone_make_no_document() -> None:
    columns = text_columns(source(template="# {title}\n{body} {{{title}}}"))
    assert columns.names == ["title", "body"]
    assert to_list(columns.texts(TABLE)) == ["# A\nx {A}", "# \ny {}", "# C\n {C}", ""]
    assert to_list(columns.texts(TABLE.to_batches()[0])) == to_list(columns.texts(TABLE))


def test_a_template_of_one_bare_column_is_that_column() -> None:
    assert to_list(text_columns(source(template="{body}")).texts(TABLE)) == ["x", "y", "", ""]


def test_columns_that_are_missing_or_no_text_are_named_with_their_setting() -> None:
    types = arrow_types(TABLE.schema)
    with pytest.raises(
        DataError, match=r"data.source.template='\{body\}\{text\}': text is no column of x; it has title"
    ):
        text_columns(source(template="{body}{text}")).check(types, "x")
    with pytest.raises(DataError, match=r"data.source.text_column=n: column n of x holds int64, not text"):
        text_columns(source(text_column="n")).check(types, "x")


@pytest.mark.parametrize(
    ("low", "high", "kept"), [(None, None, None), (2, None, [0, 1, 1]), (None, 2, [1, 1, 0]), (2, 2, [0, 1, 0])]
)
def test_lengths_are_counted_in_characters(low: int | None, high: int | None, kept: list[int] | None) -> None:
    found = long_enough(list_texts(["a", "é🙂", "abc"]), source(min_characters=low, max_characters=high))
    assert (found if found is None else [bool(x.as_py()) for x in found]) == kept


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"template": "plain"}, r"data.source.template: 'plain' names no columns; write it like {title}: {body}"),
        ({"template": "{}"}, r"data.source.template: '{}' names no columns"),
        ({"template": "{a:>9}"}, r"data.source.template: '{a:>9}' names no columns"),
        ({"template": "{a"}, r"data.source.template: '{a' is no template \(.*\); write it like"),
        ({"min_characters": 5, "max_characters": 4}, r"data.source: min_characters=5 is above max_characters=4; lower"),
    ],
)
def test_a_template_without_columns_and_lengths_that_nothing_has_are_refused(
    fields: dict[str, object], message: str
) -> None:
    values = {"run": {"dir": "r"}, "data": {"dir": "d", "source": {"path": "x", **fields}}, "train": {"steps": 1}}
    with pytest.raises(ConfigError, match=message):
        parse_config(values)

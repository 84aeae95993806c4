"""Documents to read by number, from local files, the Hub, or Python itself. The home of `datasets`.

Parquet and JSON Lines are read where they are. The rest (text, Arrow, compressed files, other JSON, downloads from the
Hub) becomes Arrow in the cache of `datasets`, or is streamed. `datasets` reads plain text with universal newlines:
"\\r\\n" and "\\r" become "\\n". JSON and Parquet stay as they are: `datasets` would make times and numbers of some
text in JSON, so it gets what our own parser has read.
"""

import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gptscale.config.data import SourceConfig
from gptscale.data.cache_room import check_cache_room, refused
from gptscale.data.columns import ONLY_TEXT, Columns, arrow_types, describe_columns, text_columns
from gptscale.data.embedded import EMBEDDED, TextList, open_embedded
from gptscale.data.failures import failures, innermost, is_without_rows, reason, reason_in_text
from gptscale.data.file_identity import describe_files, root_of
from gptscale.data.file_kinds import is_compressed
from gptscale.data.globs import literal_patterns
from gptscale.data.hub import check_revision, find_revision, not_loaded
from gptscale.data.jsonlines import JsonLines, is_json_lines, open_json_lines
from gptscale.data.manifest import hash_json
from gptscale.data.parquet import ParquetFiles, open_parquet
from gptscale.data.source_files import check_read, expand, find_files, is_local, unreadable, unreadable_is_said
from gptscale.data.streamed import PARSER, JsonStream, Rows, Streamed, each_row, open_json_stream
from gptscale.data.texts import Texts
from gptscale.data.zst import check_whole
from gptscale.errors import DataError

_BATCH_ROWS = 256


@dataclass(frozen=True)
class DatasetsStream(Streamed):
    """Files that `datasets` streams."""

    kind: str
    options: dict[str, Any]
    """What `datasets.load_dataset` is asked for."""

    def read_file(self, number: int) -> Iterator[Texts]:
        """The texts of one file, in batches."""
        with _failure_is_said(f"{self.path}, file {number + 1} of {self.files},"):
            stream = self._stream.shard(num_shards=self.files, index=number)
            for table in stream.with_format("arrow").iter(batch_size=_BATCH_ROWS):
                yield self.columns.texts(table)

    @cached_property
    def _stream(self) -> Any:
        """Opened once in a process that reads: all the files are looked up then."""
        return _quiet_datasets().load_dataset(self.kind, streaming=True, **self.options)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Table:
    """Columns of a `datasets.Dataset`, which is memory-mapped Arrow."""

    table: Any
    columns: Columns
    description: dict[str, Any]

    def __len__(self) -> int:
        return len(self.table)

    def most_bytes(self) -> int:
        """What Arrow's columns take."""
        return self.columns.most_bytes(self.table.data.nbytes, len(self))

    def read(self, start: int, stop: int) -> Iterator[Texts]:
        """The texts of documents start to stop - 1, in batches."""
        chosen = self.table.with_format("arrow")
        for first in range(start, stop, _BATCH_ROWS):
            for batch in chosen[first : min(first + _BATCH_ROWS, stop)].to_batches():
                yield self.columns.texts(batch)


Source = Table | ParquetFiles | JsonLines | TextList
"""Documents that are read by number. Its description says what pins their content: a Hub revision, or files' hashes."""


def open_source(cfg: SourceConfig) -> Source | Streamed:
    """Open the documents that data.source names.

    Raises DataError for what is missing, unreadable, of another shape, or empty.
    """
    source = _open(cfg)
    if not isinstance(source, Streamed) and len(source) == 0:
        raise _no_documents(cfg.path)
    limits = {name: value for name in ("min_characters", "max_characters") if (value := getattr(cfg, name)) is not None}
    source.description.update(limits)
    return source


def _open(cfg: SourceConfig) -> Source | Streamed:
    if cfg.format == "embedded" or (cfg.format == "auto" and cfg.path == EMBEDDED):
        return open_embedded(cfg)
    if cfg.format == "hub" or (cfg.format == "auto" and not is_local(cfg.path)):
        return _open_hub(cfg)
    return _open_files(cfg)


def _open_files(cfg: SourceConfig) -> Source | Streamed:
    root = expand(cfg.path)
    with unreadable_is_said(cfg.path):
        kind, files = find_files(cfg)
        check_read(cfg, kind)
        described = describe_files(files, root_of(root, files))
        filled = [path for path, file in zip(files, described, strict=True) if file["bytes"]]
        columns = ONLY_TEXT if kind == "text" else text_columns(cfg)
        about: dict[str, Any] = {"path": cfg.path, "kind": kind}
        about |= {"documents": cfg.documents} if kind == "text" else describe_columns(cfg)
        about["files"] = described
        if not filled:
            raise DataError(f"data.source.path={cfg.path} holds only empty files")
        check_whole(filled, cfg.path)
        if cfg.streaming:
            about["streaming"] = True
            if kind == "json":
                return open_json_stream(filled, columns, cfg.path, about)
            options = {"data_files": literal_patterns(filled), "split": "train", **_builder_options(kind, cfg)}
            return _open_stream(kind, options, columns, cfg, about)
        if kind == "parquet":
            return open_parquet(filled, columns, cfg.path, about)
        if kind == "json" and all(not is_compressed(path) and is_json_lines(path) for path in filled):
            return open_json_lines(filled, columns, cfg.path, about)
        if kind == "json":
            about |= {"parser": PARSER}
            return Table(_convert(open_json_stream(filled, columns, cfg.path, about), cfg), ONLY_TEXT, about)
    return _checked(_load_files(kind, filled, cfg, hash_json(described)), columns, cfg, about)


def _load_files(kind: str, files: Sequence[Path], cfg: SourceConfig, identity: str) -> Any:
    datasets, options = _quiet_datasets(), _builder_options(kind, cfg)
    with _cache_for(kind, files, cfg, identity) as cache:
        return datasets.load_dataset(
            kind, data_files=literal_patterns(files), split="train", cache_dir=cache, **options
        )


def _convert(stream: JsonStream, cfg: SourceConfig) -> Any:
    """Make a table of the one column text from JSON that cannot be read where it is."""
    datasets = _quiet_datasets()
    identity = hash_json({name: value for name, value in stream.description.items() if name != "path"})
    features = datasets.Features({"text": datasets.Value("large_string")})
    with _cache_for("json", stream.paths, cfg, identity) as cache:
        rows = {"rows": Rows(stream, identity)}
        return datasets.Dataset.from_generator(
            each_row, features=features, gen_kwargs=rows, cache_dir=cache, writer_batch_size=_BATCH_ROWS
        )


@contextmanager
def _cache_for(kind: str, files: Sequence[Path], cfg: SourceConfig, identity: str) -> Iterator[str]:
    """A cache of the files' own; datasets' would know them by path and time of change alone. Failing is a DataError."""
    datasets = _quiet_datasets()
    cache = Path(datasets.config.HF_DATASETS_CACHE, f"gptscale-{identity[:32]}")
    check_cache_room(files, cache, cfg)
    try:
        yield str(cache)
    except failures(datasets) as error:
        if refusal := refused(error, cfg, cache.parent):
            raise refusal from None
        if isinstance(cause := innermost(error), DataError):
            raise cause from None
        if is_without_rows(error):
            raise _no_documents(cfg.path) from None
        said = reason_in_text(error, files) if kind == "text" else reason(error)
        raise unreadable(cfg.path, kind, said) from None


def _builder_options(kind: str, cfg: SourceConfig) -> dict[str, Any]:
    if kind == "text":
        return {"sample_by": "document" if cfg.documents == "file" else cfg.documents}
    return {"batch_size": 1000} if kind == "parquet" else {}  # its default, a row group, fails on a file without rows


def _open_hub(cfg: SourceConfig) -> Source | Streamed:
    revision = find_revision(cfg)
    columns = text_columns(cfg)
    options: dict[str, Any] = {"name": cfg.name, "split": cfg.split, "revision": revision}
    options |= {"data_files": list(cfg.data_files)} if cfg.data_files else {}
    about = {"path": cfg.path, "kind": "hub", **options, **describe_columns(cfg)}
    if cfg.streaming:
        about["streaming"] = True
        return _open_stream(cfg.path, options, columns, cfg, about)
    datasets = _quiet_datasets()
    try:
        table = _load(cfg.path, options, cfg, about)
    except failures(datasets) as error:
        raise not_loaded(cfg, revision, reason(error)) from None
    check_revision(table, revision, cfg)
    return _checked(table, columns, cfg, about)


def _load(path: str, options: dict[str, Any], cfg: SourceConfig, about: dict[str, Any], **more: bool) -> Any:
    """What `datasets` loads. It says only then that a Hub dataset is plain text, each line of which is a row to it."""
    load = _quiet_datasets().load_dataset
    found = load(path, **options, **more)
    if found.info.builder_name != "text" or "sample_by" in options or cfg.documents == "line":
        return found
    options |= _builder_options("text", cfg)
    about["documents"] = cfg.documents
    return load(path, **options, **more)


def _open_stream(
    kind: str, options: dict[str, Any], columns: Columns, cfg: SourceConfig, about: dict[str, Any]
) -> Streamed:
    with _failure_is_said(cfg.path):
        stream = _load(kind, options, cfg, about, streaming=True)
        first = next(iter(stream.with_format("arrow").iter(batch_size=1)), None)
    if first is None:
        raise _no_documents(cfg.path)
    columns.check(arrow_types(first.schema), cfg.path)
    return DatasetsStream(stream.num_shards, _marked(columns, stream), cfg.path, about, kind, options)


@contextmanager
def _failure_is_said(path: str) -> Iterator[None]:
    """Turn what a stream cannot open or read, at once or in the middle, into a DataError."""
    datasets = _quiet_datasets()
    try:
        yield
    except failures(datasets) as error:
        raise DataError(
            f"data.source.path={path} cannot be streamed: {reason(error)}; run prepare again when it can be read, "
            "which goes on from here"
        ) from None


def _no_documents(path: str) -> DataError:
    return DataError(f"data.source.path={path} holds no documents; name files that hold text")


def _checked(table: Any, columns: Columns, cfg: SourceConfig, about: dict[str, Any]) -> Table:
    columns.check(arrow_types(table.features.arrow_schema), cfg.path)
    return Table(table.select_columns(columns.names), _marked(columns, table), about)


def _marked(columns: Columns, found: Any) -> Columns:
    """In plain text `datasets` keeps the mark that some editors put before the first line."""
    return replace(columns, marked=found.info.builder_name == "text")


def _quiet_datasets() -> Any:
    """`datasets`, without progress bars where nobody watches them; what it cannot read is for us to say."""
    import datasets
    import tqdm

    if not sys.stdout.isatty():
        datasets.disable_progress_bars()
    tqdm.tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a worker that is ended would leave behind
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    return datasets

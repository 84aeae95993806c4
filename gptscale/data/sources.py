"""Documents to read by number, from local files, the Hub, or Python itself. The home of `datasets`.

Parquet and JSON Lines are read where they are, compressed JSON Lines too if they are streamed. `datasets` turns the
rest (text, Arrow, compressed files, downloads from the Hub) into Arrow in its cache, or streams it. It reads plain
text with universal newlines: "\\r\\n" and "\\r" become "\\n". JSON and Parquet stay as they are.
"""

import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol

import pyarrow as pa

from gptscale.config.data import SourceConfig
from gptscale.data.cache_room import check_cache_room, is_full, no_room
from gptscale.data.columns import Columns, arrow_types, describe_columns, only_column, text_columns
from gptscale.data.embedded import EMBEDDED, open_embedded
from gptscale.data.hub import find_revision, is_offline
from gptscale.data.jsonlines import is_json_lines, open_json_lines, unpacking_errors
from gptscale.data.manifest import hash_json
from gptscale.data.parquet import open_parquet
from gptscale.data.source_files import (
    describe_files,
    expand,
    find_files,
    is_compressed,
    is_local,
    unreadable,
    unreadable_is_said,
)
from gptscale.data.streamed import Streamed, open_json_stream
from gptscale.data.texts import Texts
from gptscale.data.zst import check_whole
from gptscale.errors import DataError

_BATCH_ROWS = 256
_REASON_CHARACTERS = 300


class Source(Protocol):
    """A sequence of documents."""

    @property
    def description(self) -> dict[str, Any]:
        """What was read: path, kind, and what pins its content (a Hub revision, files with hashes)."""

    def __len__(self) -> int:
        """Documents in all, empty ones included."""

    def most_bytes(self) -> int:
        """What the texts of all documents cannot exceed, as far as it is known without reading them."""

    def read(self, start: int, stop: int) -> Iterator[Texts]:
        """The texts of documents start to stop - 1, in batches."""


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
        return _stream(self.kind, self.options)

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


def open_source(cfg: SourceConfig) -> Source | Streamed:
    """Open the documents that data.source names.

    Raises DataError for what is missing, unreadable, of another shape, or empty.
    """
    source = _open(cfg)
    if not isinstance(source, Streamed) and len(source) == 0:
        raise DataError(f"data.source.path={cfg.path} holds no documents")
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
        _check_read(cfg, kind)
        described = describe_files(files, root if root.is_dir() else root.parent)
        filled = [path for path, file in zip(files, described, strict=True) if file["bytes"]]
        columns = only_column("text") if kind == "text" else text_columns(cfg)
        about: dict[str, Any] = {"path": cfg.path, "kind": kind}
        about |= {"documents": cfg.documents} if kind == "text" else describe_columns(cfg)
        about["files"] = described
        if not filled:
            raise DataError(f"data.source.path={cfg.path} holds only empty files")
        check_whole(filled, cfg.path)
        if cfg.streaming:
            about["streaming"] = True
            if kind == "json" and (lines := open_json_stream(filled, columns, cfg.path, about)):
                return lines
            options = {"data_files": _names(filled), "split": "train", **_builder_options(kind, cfg)}
            return _open_stream(kind, options, columns, cfg, about)
        if kind == "parquet":
            return open_parquet(filled, columns, cfg.path, about)
        if kind == "json" and all(not is_compressed(path) and is_json_lines(path) for path in filled):
            return open_json_lines(filled, columns, cfg.path, about)
    return _checked(_load_files(kind, filled, cfg, hash_json(described)), columns, cfg, about)


def _check_read(cfg: SourceConfig, kind: str) -> None:
    """Refuse settings that choose text elsewhere, and that files of this kind have no use for."""
    unread = {"name", "revision", "split", "data_files", *(("text_column", "template") if kind == "text" else ())}
    for name, field in SourceConfig.model_fields.items():
        if name in unread and (value := getattr(cfg, name)) != field.default:
            raise DataError(
                f"data.source.{name}={value!r} is of no use: {cfg.path} is {kind} on this machine, all of which is "
                f"read; leave it out, or name the very files by data.source.path"
            )


def _load_files(kind: str, files: Sequence[Path], cfg: SourceConfig, identity: str) -> Any:
    """Load files through a cache of their own; datasets' would know them by path and time of change alone."""
    datasets = _quiet_datasets()
    cache = Path(datasets.config.HF_DATASETS_CACHE, f"gptscale-{identity[:32]}")
    check_cache_room(files, cache, cfg)
    options = _builder_options(kind, cfg)
    try:
        return datasets.load_dataset(kind, data_files=_names(files), split="train", cache_dir=str(cache), **options)
    except _failures(datasets) as error:
        if is_full(error):
            raise no_room(cfg, cache.parent) from None
        raise unreadable(cfg.path, kind, _reason(error)) from None


def _builder_options(kind: str, cfg: SourceConfig) -> dict[str, Any]:
    if kind == "text":
        return {"sample_by": "document" if cfg.documents == "file" else cfg.documents}
    return {"batch_size": 1000} if kind == "parquet" else {}  # its default, a row group, fails on a file without rows


def _names(files: Sequence[Path]) -> list[str]:
    """The files' names as patterns, for which datasets takes them; there [[] is the one way to write a bracket."""
    return [str(path.absolute()).replace("[", "[[]") for path in files]


def _open_hub(cfg: SourceConfig) -> Source | Streamed:
    revision = find_revision(cfg)
    columns = text_columns(cfg)
    about: dict[str, Any] = {
        "path": cfg.path,
        "kind": "hub",
        "name": cfg.name,
        "split": cfg.split,
        "revision": revision,
    }
    about |= {"data_files": list(cfg.data_files)} if cfg.data_files else {}
    about |= describe_columns(cfg)
    options: dict[str, Any] = {"name": cfg.name, "revision": revision, "split": cfg.split}
    options |= {"data_files": list(cfg.data_files)} if cfg.data_files else {}
    if cfg.streaming:
        about["streaming"] = True
        return _open_stream(cfg.path, options, columns, cfg, about)
    datasets = _quiet_datasets()
    try:
        table = datasets.load_dataset(cfg.path, **options)
    except _failures(datasets) as error:
        raise DataError(_not_loaded(cfg, revision, error)) from None
    _check_revision(table, revision, cfg)
    return _checked(table, columns, cfg, about)


def _check_revision(table: Any, revision: str, cfg: SourceConfig) -> None:
    """Refuse what an offline cache gave under another revision than was asked for."""
    origins = [origin for origin in (table.info.download_checksums or {}) if origin.startswith("hf://")]
    if origins and not any(f"@{revision}" in origin for origin in origins):
        raise DataError(
            f"data.source.path={cfg.path}: the cache holds {origins[0]}, not revision {revision[:12]}; unset "
            "HF_HUB_OFFLINE to download it, or set data.source.revision to the cached one"
        )


def _not_loaded(cfg: SourceConfig, revision: str, error: BaseException) -> str:
    hint = "; HF_HUB_OFFLINE is set: unset it, or point HF_HOME at a cache that holds it" if is_offline() else ""
    return (
        f"data.source.path={cfg.path}, name={cfg.name}, split={cfg.split}, revision={revision[:12]} "
        f"cannot be loaded from the Hub: {_reason(error)}{hint}"
    )


def _open_stream(
    kind: str, options: dict[str, Any], columns: Columns, cfg: SourceConfig, about: dict[str, Any]
) -> Streamed:
    with _failure_is_said(cfg.path):
        stream = _stream(kind, options)
        first = next(iter(stream.with_format("arrow").iter(batch_size=1)), None)
    if first is None:
        raise DataError(f"data.source.path={cfg.path} holds no documents")
    columns.check(arrow_types(first.schema), cfg.path)
    return DatasetsStream(stream.num_shards, columns, cfg.path, about, kind, options)


def _stream(kind: str, options: dict[str, Any]) -> Any:
    return _quiet_datasets().load_dataset(kind, streaming=True, **options)


@contextmanager
def _failure_is_said(path: str) -> Iterator[None]:
    """Turn what a stream cannot open or read, at once or in the middle, into a DataError."""
    datasets = _quiet_datasets()
    try:
        yield
    except _failures(datasets) as error:
        raise DataError(
            f"data.source.path={path} cannot be streamed: {_reason(error)}; run prepare again when it can be read, "
            "which goes on from here"
        ) from None


def _checked(table: Any, columns: Columns, cfg: SourceConfig, about: dict[str, Any]) -> Table:
    columns.check(arrow_types(table.features.arrow_schema), cfg.path)
    return Table(table.select_columns(columns.names), columns, about)


def _quiet_datasets() -> Any:
    """`datasets`, without progress bars where nobody watches them; what it cannot read is for us to say."""
    import datasets
    import tqdm

    if not sys.stdout.isatty():
        datasets.disable_progress_bars()
    tqdm.tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a worker that is ended would leave behind
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    return datasets


def _failures(datasets: Any) -> tuple[type[Exception], ...]:
    """What `datasets` raises for data that is missing, cut short or of another shape; each format has its own."""
    own = datasets.exceptions.DatasetsError
    return (*unpacking_errors(), ValueError, RuntimeError, pa.ArrowException, own)


def _reason(error: BaseException) -> str:
    """The innermost error in one line; it says what `datasets` only wraps."""
    while error.__cause__ is not None:
        error = error.__cause__
    return shorten(str(error), _REASON_CHARACTERS) or type(error).__name__

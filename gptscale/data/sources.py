"""Documents to read by number, from local files, the Hub, or Python itself. The home of `datasets`.

`datasets` reads plain text with universal newlines: "\\r\\n" and "\\r" become "\\n". JSON and Parquet stay as they are.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gptscale.config.schema import SourceConfig
from gptscale.data.embedded import python_library, python_version
from gptscale.data.manifest import hash_json
from gptscale.data.source_files import describe_files, expand, find_files, hash_texts, is_local, unreadable_is_said
from gptscale.errors import DataError

EMBEDDED = "python-library"


class Source(Protocol):
    """A sequence of documents."""

    @property
    def description(self) -> dict[str, Any]:
        """What was read: path, kind, and what pins its content (a Hub revision, files with hashes)."""

    def __len__(self) -> int:
        """Documents in all, empty ones included."""

    def read(self, start: int, stop: int) -> list[str]:
        """The texts of documents start to stop - 1."""


def open_source(cfg: SourceConfig) -> Source:
    """Open the documents that data.source names.

    Raises DataError for what is missing, unreadable, of another shape, or empty.
    """
    source = _open(cfg)
    if len(source) == 0:
        raise DataError(f"data.source.path={cfg.path} holds no documents")
    return source


def _open(cfg: SourceConfig) -> Source:
    if cfg.format == "embedded" or (cfg.format == "auto" and cfg.path == EMBEDDED):
        return _open_embedded(cfg)
    if cfg.format == "hub" or (cfg.format == "auto" and not is_local(cfg.path)):
        return _open_hub(cfg)
    return _open_files(cfg)


@dataclass(frozen=True)
class TextList:
    """Documents that are already in memory."""

    texts: Sequence[str]
    description: dict[str, Any]

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, start: int, stop: int) -> list[str]:
        """The texts of documents start to stop - 1."""
        return list(self.texts[start:stop])


@dataclass(frozen=True)
class TableColumn:
    """The text column of a `datasets.Dataset`, which is memory-mapped Arrow; null is an empty text."""

    table: Any
    column: str
    description: dict[str, Any]

    def __len__(self) -> int:
        return len(self.table)

    def read(self, start: int, stop: int) -> list[str]:
        """The texts of documents start to stop - 1."""
        return [text or "" for text in self.table[start:stop][self.column]]


def _open_embedded(cfg: SourceConfig) -> Source:
    if cfg.path != EMBEDDED:
        raise DataError(f"data.source.path={cfg.path} is not embedded; the embedded corpus is {EMBEDDED}")
    texts = python_library()
    about = {"python": python_version(), "sha256": hash_texts(texts)}
    return TextList(texts, {"path": cfg.path, "kind": "embedded", **about})


def _open_files(cfg: SourceConfig) -> Source:
    root = expand(cfg.path)
    with unreadable_is_said(cfg):
        kind, files = find_files(cfg)
        described = describe_files(files, root if root.is_dir() else root.parent)
    about: dict[str, Any] = {"path": cfg.path, "kind": kind}
    about |= {"documents": cfg.documents} if kind == "text" else {"text_column": cfg.text_column}
    about["files"] = described
    filled = [path for path, file in zip(files, described, strict=True) if file["bytes"]]
    table = _load_files(kind, filled, cfg, hash_json(described))
    return TableColumn(table, _checked_column(table, cfg, kind), about)


def _load_files(kind: str, files: Sequence[Path], cfg: SourceConfig, identity: str) -> Any:
    """Load files through a cache of their own; datasets' would know them by path and time of change alone."""
    if not files:
        raise DataError(f"data.source.path={cfg.path} holds only empty files")
    datasets = _quiet_datasets()
    options: dict[str, dict[str, Any]] = {
        "text": {"sample_by": "document" if cfg.documents == "file" else cfg.documents},
        "json": {},
        "parquet": {"batch_size": 1000},  # its default, a row group, fails on a file without rows
    }
    # datasets reads names as patterns; in its patterns [[] is the one way to write a bracket.
    names = [str(path.absolute()).replace("[", "[[]") for path in files]
    cache = Path(datasets.config.HF_DATASETS_CACHE, f"gptscale-{identity[:32]}")
    try:
        return datasets.load_dataset(kind, data_files=names, split="train", cache_dir=str(cache), **options[kind])
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"data.source.path={cfg.path} cannot be read as {kind}: {_reason(error)}") from None


def _open_hub(cfg: SourceConfig) -> Source:
    datasets = _quiet_datasets()
    revision = _hub_revision(cfg)
    try:
        table = datasets.load_dataset(cfg.path, cfg.name, revision=revision, split=cfg.split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"data.source.path={cfg.path}, name={cfg.name}, split={cfg.split}, revision={revision[:12]} "
            f"cannot be loaded from the Hub: {_reason(error)}"
        ) from None
    about = {"path": cfg.path, "kind": "hub", "name": cfg.name, "split": cfg.split, "revision": revision}
    about["text_column"] = cfg.text_column
    return TableColumn(table, _checked_column(table, cfg, "hub"), about)


def _hub_revision(cfg: SourceConfig) -> str:
    """The full commit that data.source.revision (or null, the newest) stands for today."""
    import huggingface_hub

    try:
        found = huggingface_hub.HfApi().dataset_info(cfg.path, revision=cfg.revision)
    except Exception as error:  # httpx, huggingface_hub and the socket each have their own
        raise DataError(
            f"data.source.path={cfg.path} is no file or folder here, and the Hub gave no such dataset ("
            f"{type(error).__name__}: {_reason(error)}); check the path, the network, HF_TOKEN"
        ) from None
    assert found.sha is not None
    return found.sha


def _checked_column(table: Any, cfg: SourceConfig, kind: str) -> str:
    column = "text" if kind == "text" else cfg.text_column
    if column not in table.column_names:
        raise DataError(
            f"data.source.text_column={column} is no column of {cfg.path}; it has {', '.join(table.column_names)}"
        )
    dtype = getattr(table.features[column], "dtype", "a structure")
    if dtype not in ("string", "large_string", "null"):
        raise DataError(f"data.source.text_column={column} of {cfg.path} holds {dtype}, not text")
    return column


def _quiet_datasets() -> Any:
    """`datasets`, without progress bars where nobody watches them."""
    import datasets

    if not sys.stdout.isatty():
        datasets.disable_progress_bars()
    return datasets


def _reason(error: BaseException) -> str:
    """The first line of the innermost error, which says what `datasets` only wraps."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""The corpus inside every Python: its language reference (pydoc's topics) and its standard library.

About 10 MB of English and code that need no network. It is the same wherever the same Python is installed.
"""

import os
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptscale.config.data import SourceConfig
from gptscale.data.file_identity import hash_texts
from gptscale.data.texts import Texts, list_texts
from gptscale.errors import DataError

EMBEDDED = "python-library"
_BATCH_ROWS = 256

# Tests, data tables, generated files with this machine's paths, and programs that are no library.
_LEFT_OUT = {
    "__pycache__", "dist-packages", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip


@dataclass(frozen=True)
class TextList:
    """Documents that are already in memory."""

    texts: Sequence[str]
    description: dict[str, Any]

    def __len__(self) -> int:
        return len(self.texts)

    def most_bytes(self) -> int:
        """Four for each character."""
        return 4 * sum(map(len, self.texts))

    def read(self, start: int, stop: int) -> Iterator[Texts]:
        """The texts of documents start to stop - 1, in batches."""
        for first in range(start, stop, _BATCH_ROWS):
            yield list_texts(self.texts[first : min(first + _BATCH_ROWS, stop)])


def open_embedded(cfg: SourceConfig) -> TextList:
    """The corpus called python-library. Raises DataError for another name."""
    if cfg.path != EMBEDDED:
        raise DataError(f"data.source.path={cfg.path} is not embedded; the embedded corpus is {EMBEDDED}")
    texts = python_library()
    about = {"python": python_version(), "sha256": hash_texts(texts)}
    return TextList(texts, {"path": cfg.path, "kind": "embedded", **about})


def python_library() -> list[str]:
    """The topics in the order of their names, then the library's files in the order of their paths."""
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    return texts + [text for path in _library_files() if (text := _read(path))]


def python_version() -> str:
    """Which Python's texts these are, such as CPython 3.11.7."""
    return f"{platform.python_implementation()} {platform.python_version()}"


def _library_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    files: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _LEFT_OUT and not name.startswith("config-")]
        own = [name for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata")]
        files += [Path(folder, name) for name in own]
    return sorted(files, key=lambda path: path.relative_to(root).parts)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""

"""The corpus inside every Python: its language reference (pydoc's topics) and its standard library.

About 10 MB of English and code that need no network. It is the same wherever the same Python is installed.
"""

import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Tests, data tables, generated files with this machine's paths, and programs that are no library.
_LEFT_OUT = {
    "__pycache__", "dist-packages", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip


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
    return sorted(_python_files(root), key=lambda path: path.relative_to(root).parts)


def _python_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _LEFT_OUT and not name.startswith("config-")]
        yield from (Path(folder, name) for name in names if _is_library(name))


def _is_library(name: str) -> bool:
    return name.endswith(".py") and not name.startswith("_sysconfigdata")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""

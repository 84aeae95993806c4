"""Patterns of file names: what they would match, and names that are none."""

import glob
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path

from gptscale.errors import DataError


def folder_of(path: Path) -> Path:
    """The folder of a file, or that below which a glob looks."""
    literal = list(takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
    return Path(*literal) if glob.has_magic(str(path)) and not path.is_file() else path.parent


def could_find(pattern: str, path: Path) -> bool:
    """Whether a glob finds a file, if it is there."""
    return _matches(Path(os.path.abspath(os.path.expanduser(pattern))).parts, Path(os.path.abspath(path)).parts)


def _matches(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    if not pattern or not parts:
        return not parts and all(each == "**" for each in pattern)
    hidden = parts[0].startswith(".") and not pattern[0].startswith(".")  # which no wildcard finds
    if pattern[0] == "**":
        return _matches(pattern[1:], parts) or (not hidden and _matches(pattern, parts[1:]))
    return not hidden and fnmatchcase(parts[0], pattern[0]) and _matches(pattern[1:], parts[1:])


def literal_patterns(files: Sequence[Path]) -> list[str]:
    """The files' names as patterns, for which datasets takes them; there [?] is the one way to write a question mark.

    Raises DataError for a name that it would take apart.
    """
    names = [str(path.absolute()) for path in files]
    if chained := next((name for name in names if "::" in name), None):
        raise DataError(f"{chained} has :: in its name, which datasets takes for two files; rename it or its folder")
    return [re.sub(r"[*?[]", r"[\g<0>]", name) for name in names]

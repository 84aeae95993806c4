"""The local files that a source's path names, and what is said where they cannot be read."""

import difflib
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gptscale.config.data import SourceConfig
from gptscale.data.file_identity import Stamps, stamp
from gptscale.data.file_kinds import SPLITS, is_made_of_others, kind_of, kind_of_file, of_one_kind
from gptscale.errors import DataError


def is_local(path: str) -> bool:
    """Whether a path means files here rather than a Hub dataset."""
    return (
        os.path.exists(os.path.expanduser(path))  # unlike Path, these raise for no path
        or glob.has_magic(path)
        or path.startswith(("/", ".", "~"))
        or kind_of(Path(path)) is not None
    )


def find_files(cfg: SourceConfig, say: Callable[[str], None] = lambda line: None) -> tuple[str, list[Path]]:
    """The kind (text, json, parquet, arrow) and the sorted files of a file, a glob or a folder.

    A file that links lead to as well is there once. Files of no format are passed over, which is said. Raises
    DataError, naming data.source.path, when there are none or when they are of several kinds.
    """
    path = expand(cfg.path)
    if path.is_file():
        return kind_of_file(path, cfg), [path]
    if path.is_dir():
        files = _each_once(_walk(path))
        kind, chosen = of_one_kind(files, cfg, "the folder", say)
        if kind == "arrow":
            _check_splits(files, cfg)
        return kind, chosen
    if glob.has_magic(cfg.path):
        found = (Path(name) for name in glob.glob(str(path), recursive=True))
        matches = _each_once([match for match in found if match.is_file()])
        if not matches:
            raise DataError(f"data.source.path={cfg.path} matches no file")
        if cfg.format != "auto":  # whatever the endings say
            return cfg.format, [path for path in matches if not is_made_of_others(path)] or matches
        return of_one_kind(matches, cfg, "the glob", say)
    if path.exists():
        raise DataError(f"data.source.path={cfg.path} is neither a file nor a folder")
    raise DataError(f"data.source.path={cfg.path} does not exist{_nearby(path)}")


def _check_splits(files: Sequence[Path], cfg: SourceConfig) -> None:
    """Refuse several splits that `DatasetDict.save_to_disk` wrote: the text of a test set would be trained on."""
    for folder in (path.parent for path in files if path.name == SPLITS):
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        if len(splits) > 1:
            likely = "train" if "train" in splits else splits[0]
            raise DataError(
                f"data.source.path={cfg.path} holds the splits {', '.join(splits)} of a saved dataset; name one of "
                f"them (data.source.path={folder / likely}), or all by a glob ({expand(cfg.path) / '**' / '*.arrow'})"
            )


def expand(path: str) -> Path:
    """A source's path with the home that ~ stands for.

    Raises DataError for the home of a user whom this machine does not know.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DataError(
            f"data.source.path={path} begins with the home of a user that is not known here; write the path in full"
        ) from None


def check_read(cfg: SourceConfig, kind: str) -> None:
    """Refuse settings that choose text elsewhere, and that files of this kind have no use for."""
    unread = {"name", "revision", "split", "data_files", *(("text_column", "template") if kind == "text" else ())}
    for name, field in SourceConfig.model_fields.items():
        if name in unread and (value := getattr(cfg, name)) != field.default:
            unset = {None: "null", (): "[]"}.get(field.default, field.default)
            raise DataError(
                f"data.source.{name}={value!r} is of no use: {cfg.path} is {kind} on this machine, all of which is "
                f"read; set data.source.{name}={unset}, or name the very files by data.source.path"
            )


@contextmanager
def unreadable_is_said(path: str) -> Iterator[None]:
    """Turn a refusal of the file system into a DataError that names data.source.path."""
    try:
        yield
    except OSError as error:
        where = "" if str(error.filename) == path else f" ({error.filename})"
        raise DataError(f"data.source.path={path} cannot be read: {error.strerror}{where}") from None


def unreadable(path: str, kind: str, reason: str) -> DataError:
    """The error for a file whose content is not what its kind says."""
    return DataError(
        f"data.source.path={path} cannot be read as {kind}: {reason}; mend that file, copy it again, or move it away"
    )


def changed(path: str, file: Path) -> DataError:
    """The error for a file that was written to while it was read."""
    return DataError(
        f"data.source.path={path}: {file} has changed since it was opened, so that data.dir may hold text of before "
        "and after; delete that folder, and run prepare again when nothing writes to the source"
    )


def stamp_files(cfg: SourceConfig, say: Callable[[str], None]) -> Stamps:
    """The stamps of a source's files; none of what is not here, and of what cannot be read, which opening it says."""
    if cfg.format in ("hub", "embedded") or not is_local(cfg.path):
        return {}
    try:
        return {path: stamp(path) for path in find_files(cfg, say)[1]}
    except (OSError, DataError):
        return {}


def _walk(folder: Path) -> list[Path]:
    """The files below a folder, without hidden ones; raises OSError for what may not be listed."""
    found: list[Path] = []
    seen: set[str] = set()
    roots = [str(folder)]
    for root in roots:  # links to folders are further ones, entered last, so that what has a place here keeps its name
        for parent, subfolders, names in os.walk(root, onerror=_raise):
            if (real := os.path.realpath(parent)) in seen:  # met by another link, perhaps round in a circle
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            paths = (os.path.join(parent, name) for name in subfolders)
            roots.extend(path for path in paths if os.path.islink(path))
            found.extend(Path(parent, name) for name in names if not name.startswith("."))
    return [path for path in found if path.is_file()]


def _each_once(files: Iterable[Path]) -> list[Path]:
    """The sorted files without links to others of them."""
    found: dict[str, Path] = {}
    for path in sorted(files, key=lambda path: (path.is_symlink(), path)):
        found.setdefault(os.path.realpath(path), path)
    return sorted(found.values())


def _raise(error: OSError) -> None:
    raise error


def _nearby(path: Path) -> str:
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    names = [name for name in names if name != path.name]  # a link to nothing has the very name
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"; did you mean {path.parent / close[0]}?" if close else ""

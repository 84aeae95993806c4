"""The local files that a source's path names, and what they hold."""

import difflib
import glob
import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from gptscale.config.data import SourceConfig
from gptscale.data.globs import folder_of
from gptscale.disk import hash_file
from gptscale.errors import DataError

SUFFIXES = {
    "text": {".txt", ".text", ".md", ".rst", ".py", ".tex", ".org"},
    "json": {".jsonl", ".json", ".ndjson"},
    "parquet": {".parquet", ".pq"},
    "arrow": {".arrow"},
}
COMPRESSED = {".gz", ".zst"}
_UNKNOWN_COMPRESSION = {".7z", ".br", ".bz2", ".lz4", ".lzma", ".snappy", ".xz", ".z", ".zip", ".zstd"}
_SPLITS = "dataset_dict.json"
_OF_DATASETS = {"dataset_info.json", "state.json", _SPLITS}
"""What `Dataset.save_to_disk` leaves beside its Arrow files."""
_MADE_OF_IT = "cache-*.arrow"
"""What `map`, `filter` and `shuffle` leave beside the files of the dataset that they were made of."""

Stamps = dict[Path, tuple[int, int] | None]

HASHED_BYTES = 2**30
"""Up to this size in all, files are identified by their content; above it by size and time of change."""


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
        return _kind_of_file(path, cfg), [path]
    if path.is_dir():
        files = _each_once(_walk(path))
        kind, chosen = _of_one_kind(files, cfg, "the folder", say)
        if kind == "arrow":
            _check_splits(files, cfg)
        return kind, chosen
    if glob.has_magic(cfg.path):
        found = (Path(name) for name in glob.glob(str(path), recursive=True))
        matches = _each_once([match for match in found if match.is_file()])
        if not matches:
            raise DataError(f"data.source.path={cfg.path} matches no file")
        if cfg.format != "auto":  # whatever the endings say
            return cfg.format, [path for path in matches if not _is_made_of_others(path)] or matches
        return _of_one_kind(matches, cfg, "the glob", say)
    if path.exists():
        raise DataError(f"data.source.path={cfg.path} is neither a file nor a folder")
    raise DataError(f"data.source.path={cfg.path} does not exist{_nearby(path)}")


def _check_splits(files: Sequence[Path], cfg: SourceConfig) -> None:
    """Refuse several splits that `DatasetDict.save_to_disk` wrote: the text of a test set would be trained on."""
    for folder in (path.parent for path in files if path.name == _SPLITS):
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


def stamp(path: Path) -> tuple[int, int] | None:
    """A file's size and time of change; None if it is gone."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def describe_files(files: Sequence[Path], root: Path) -> list[dict[str, str | int]]:
    """Name, size and identity of each file; names are relative to root, so the folder may move."""
    small = sum(path.stat().st_size for path in files) <= HASHED_BYTES
    return [{"name": _name(path, root), **_size_and_identity(path, small)} for path in files]


def root_of(path: Path, files: Sequence[Path]) -> Path:
    """The folder that a source's files are named from; that of a glob counts only where their bare names repeat."""
    if path.is_dir():
        return path
    return folder_of(path) if len({file.name for file in files}) < len(files) else path.parent


def rows_by_file(first_rows: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Where rows start to stop - 1 of several files lie: number of a file, first row in it, and the one after the last.

    first_rows holds the number of each file's first row, and that of all rows at its end.
    """
    number = bisect_right(first_rows, start) - 1
    while start < stop:
        first, after = first_rows[number], first_rows[number + 1]
        yield number, start - first, min(stop, after) - first
        start, number = after, number + 1


def hash_texts(texts: Sequence[str]) -> str:
    """The SHA-256 of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(content) + content)
    return digest.hexdigest()


def _size_and_identity(path: Path, small: bool) -> dict[str, str | int]:
    stat = path.stat()
    known_by: dict[str, str | int] = {"sha256": hash_file(path)} if small else {"mtime_ns": stat.st_mtime_ns}
    return {"bytes": stat.st_size, **known_by}


def check_name(path: Path) -> None:
    """Raise DataError for a path that no manifest can hold."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(
            f"the path {str(path)!r} is no UTF-8, and so no manifest can hold it; rename that file"
        ) from None


def _name(path: Path, root: Path) -> str:
    check_name(path)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def is_compressed(path: Path) -> bool:
    """Whether a file's ending says that it is compressed, in one of the ways that are read."""
    return path.suffix.lower() in COMPRESSED


def kind_of(path: Path) -> str | None:
    """What a file's ending says it is: text, json, parquet or arrow; null for any other."""
    suffix = Path(path.stem).suffix if is_compressed(path) else path.suffix
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix.lower() in suffixes), None)


def _kind_of_file(path: Path, cfg: SourceConfig) -> str:
    kind = kind_of(path) if cfg.format == "auto" else cfg.format
    if kind is None:
        raise DataError(
            f"data.source.path={cfg.path} has an ending that says no format; "
            "set data.source.format to text, json, parquet or arrow"
        )
    return kind


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


def _of_one_kind(
    files: Sequence[Path], cfg: SourceConfig, where: str, say: Callable[[str], None]
) -> tuple[str, list[Path]]:
    wanted = set(SUFFIXES) if cfg.format == "auto" else {cfg.format}
    files = [path for path in files if not _is_of_datasets(path)]
    kinds = {path: kind for path in files if (kind := kind_of(path)) in wanted and kind is not None}
    _check_compression(files, wanted, cfg, where)
    found = sorted(set(kinds.values()))
    if not found:
        endings = ", ".join(sorted(suffix for kind in wanted for suffix in SUFFIXES[kind]))
        raise DataError(f"data.source.path={cfg.path}: {where} holds no file that ends in {endings}")
    if len(found) > 1:
        raise DataError(
            f"data.source.path={cfg.path}: {where} holds {' and '.join(found)} files; "
            "choose one with data.source.format"
        )
    if passed_over := [path for path in files if path not in kinds]:
        say(
            f"data.source.path={cfg.path}: {len(passed_over):,} of {len(files):,} files are passed over, such as "
            f"{passed_over[0]}, whose ending is not one of {found[0]}"
        )
    return found[0], list(kinds)


def _is_of_datasets(path: Path) -> bool:
    """Whether a file is what `datasets` keeps beside the documents of a dataset."""
    return path.name in _OF_DATASETS or _is_made_of_others(path)


def _is_made_of_others(path: Path) -> bool:
    """Whether a file lies beside the documents of a dataset that it was made of; the same ones once more, perhaps."""
    return fnmatchcase(path.name, _MADE_OF_IT) and any((path.parent / name).is_file() for name in _OF_DATASETS)


def _check_compression(files: Sequence[Path], wanted: Collection[str], cfg: SourceConfig, where: str) -> None:
    """Refuse text in a compression that is not read; passing it over would make another corpus in silence."""
    packed = [
        path
        for path in files
        if path.suffix.lower() in _UNKNOWN_COMPRESSION and kind_of(path.with_suffix("")) in wanted
    ]
    if packed:
        more = f" and {len(packed) - 1:,} more such files" if len(packed) > 1 else ""
        raise DataError(
            f"data.source.path={cfg.path}: {where} holds {packed[0].name}{more}, in a compression that is not read; "
            "compress with gzip (.gz) or zstd (.zst), or move them away"
        )


def _nearby(path: Path) -> str:
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    names = [name for name in names if name != path.name]  # a link to nothing has the very name
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"; did you mean {path.parent / close[0]}?" if close else ""

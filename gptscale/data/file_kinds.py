"""What files of text are by their endings, and which of many are the documents of one kind."""

from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from gptscale.config.data import SourceConfig
from gptscale.errors import DataError

SUFFIXES = {
    "text": {".txt", ".text", ".md", ".rst", ".py", ".tex", ".org"},
    "json": {".jsonl", ".json", ".ndjson"},
    "parquet": {".parquet", ".pq"},
    "arrow": {".arrow"},
}
COMPRESSED = {".gz", ".zst"}
_UNKNOWN_COMPRESSION = {".7z", ".br", ".bz2", ".lz4", ".lzma", ".snappy", ".xz", ".z", ".zip", ".zstd"}
SPLITS = "dataset_dict.json"
_OF_DATASETS = {"dataset_info.json", "state.json", SPLITS}
"""What `Dataset.save_to_disk` leaves beside its Arrow files."""
_MADE_OF_IT = "cache-*.arrow"
"""What `map`, `filter` and `shuffle` leave beside the files of the dataset that they were made of."""


def is_compressed(path: Path) -> bool:
    """Whether a file's ending says that it is compressed, in one of the ways that are read."""
    return path.suffix.lower() in COMPRESSED


def kind_of(path: Path) -> str | None:
    """What a file's ending says it is: text, json, parquet or arrow; null for any other."""
    suffix = Path(path.stem).suffix if is_compressed(path) else path.suffix
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix.lower() in suffixes), None)


def kind_of_file(path: Path, cfg: SourceConfig) -> str:
    kind = kind_of(path) if cfg.format == "auto" else cfg.format
    if kind is None:
        raise DataError(
            f"data.source.path={cfg.path} has an ending that says no format; "
            "set data.source.format to text, json, parquet or arrow"
        )
    return kind


def of_one_kind(
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
    return path.name in _OF_DATASETS or is_made_of_others(path)


def is_made_of_others(path: Path) -> bool:
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

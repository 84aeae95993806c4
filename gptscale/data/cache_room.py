"""The room that a conversion to Arrow takes in the cache of `datasets`."""

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path

from gptscale.config.data import SourceConfig
from gptscale.data.file_kinds import is_compressed
from gptscale.data.files import FULL
from gptscale.errors import DataError


def check_cache_room(files: Sequence[Path], cache: Path, cfg: SourceConfig) -> None:
    """Refuse a conversion to Arrow that cannot fit; compressed text is taken as four times its size."""
    if cache.exists():
        return
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the cache {cache.parent}, where data.source.path={cfg.path} is converted, cannot be made "
            f"({error.strerror}); set HF_DATASETS_CACHE to a folder that can"
        ) from None
    needed = sum(path.stat().st_size * (4 if is_compressed(path) else 1) for path in files)
    if needed > shutil.disk_usage(cache.parent).free:
        raise no_room(cfg, cache.parent, f"about {needed / 1e9:.1f} GB")


def refused(error: BaseException | None, cfg: SourceConfig, cache: Path) -> DataError | None:
    """The error for a full disk, a quota or a limit that ended a conversion, however often it was wrapped, or None."""
    while error is not None:
        code = error.errno if isinstance(error, OSError) else None
        if code in FULL:
            return no_room(cfg, cache)
        if code == errno.EFBIG:
            return DataError(
                f"data.source.path={cfg.path} becomes larger as Arrow in the cache {cache} than a file may be there; "
                "raise the limit (ulimit -f), set HF_DATASETS_CACHE to a folder whose disk takes larger files, or "
                "data.source.streaming=true"
            )
        error = error.__cause__ or error.__context__
    return None


def no_room(cfg: SourceConfig, cache: Path, takes: str = "more room than there is") -> DataError:
    """The error for a cache on a disk that is too small."""
    return DataError(
        f"data.source.path={cfg.path} takes {takes} as Arrow in the cache {cache}, and "
        f"{shutil.disk_usage(cache).free / 1e9:.1f} GB are free there; set HF_DATASETS_CACHE to a folder on a larger "
        "disk, or data.source.streaming=true"
    )

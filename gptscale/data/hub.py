"""The Hub revision that a corpus is pinned to."""

import os
import re
from typing import Any

from gptscale.config.data import SourceConfig
from gptscale.errors import DataError, first_line

_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE (or HF_DATASETS_OFFLINE) forbids the network."""
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    )


def find_revision(cfg: SourceConfig) -> str:
    """The full commit that data.source.revision (or null, the newest) stands for today.

    A full commit is taken as it is. Raises DataError when the Hub has to be asked and does not answer.
    """
    if cfg.revision is not None and _COMMIT.fullmatch(cfg.revision):
        return cfg.revision
    if is_offline():
        raise DataError(
            f"data.source.path={cfg.path} {_no_path(cfg)}, and HF_HUB_OFFLINE forbids to ask the Hub what "
            f"revision {cfg.revision or 'is newest'} stands for; set data.source.revision to the 40 digits of the "
            "commit that HF_HOME holds, or unset HF_HUB_OFFLINE"
        )
    return _ask(cfg)


def _no_path(cfg: SourceConfig) -> str:
    """Why the Hub is asked for what may have been meant as a path."""
    return "is no file or folder here" if cfg.format == "auto" else "is no path with data.source.format=hub"


def _ask(cfg: SourceConfig) -> str:
    import huggingface_hub

    try:
        found = huggingface_hub.HfApi().dataset_info(cfg.path, revision=cfg.revision)
    except Exception as error:  # httpx, huggingface_hub and the socket each have their own
        raise DataError(
            f"data.source.path={cfg.path} {_no_path(cfg)}, and the Hub gave no such dataset ("
            f"{type(error).__name__}: {first_line(error)}); check the path, the network (HTTPS_PROXY, HF_ENDPOINT) and "
            "HF_TOKEN, or set HF_HUB_OFFLINE=1 and data.source.revision to use what HF_HOME holds"
        ) from None
    assert found.sha is not None
    return found.sha


def check_revision(table: Any, revision: str, cfg: SourceConfig) -> None:
    """Refuse what an offline cache gave under another revision than was asked for."""
    origins = [origin for origin in (table.info.download_checksums or {}) if origin.startswith("hf://")]
    if origins and not any(f"@{revision}" in origin for origin in origins):
        raise DataError(
            f"data.source.path={cfg.path}: the cache holds {origins[0]}, not revision {revision[:12]}; unset "
            "HF_HUB_OFFLINE to download it, or set data.source.revision to the cached one"
        )


def connection_errors() -> tuple[type[Exception], ...]:
    """What the Hub's client raises when the network fails: errors of its HTTP library, which are no OSError."""
    from huggingface_hub import errors

    http: Any = errors  # whose own base comes from that library, which is not the same in every version
    return (http.HTTPError,)


def not_loaded(cfg: SourceConfig, revision: str, reason: str) -> DataError:
    """The error for a dataset that `datasets` cannot load from the Hub or its cache."""
    hint = "; HF_HUB_OFFLINE is set: unset it, or point HF_HOME at a cache that holds it" if is_offline() else ""
    return DataError(
        f"data.source.path={cfg.path}, name={cfg.name}, split={cfg.split}, revision={revision[:12]} "
        f"cannot be loaded from the Hub: {reason}{hint}"
    )

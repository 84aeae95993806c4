"""Where a run's numbers come from: provenance.json, one entry for each start."""

import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gptscale
from gptscale.disk import write_whole
from gptscale.runtime.rows import output_of

PROVENANCE_FILE = "provenance.json"

PACKAGES = (
    "torch",
    "accelerate",
    "deepspeed",
    "datasets",
    "tiktoken",
    "gigatoken",
    "safetensors",
    "numpy",
    "wandb",
)

_DAMAGE = (ValueError, KeyError, TypeError, RecursionError)
"""What reading a damaged file raises."""


def write_provenance(run_dir: Path, **facts: Any) -> None:
    """Add this start to the run folder's provenance.json; a damaged one is set aside, since no run should stop for it.

    Raises OSError.
    """
    path = run_dir / PROVENANCE_FILE
    try:
        earlier = _starts(path)
    except FileNotFoundError:
        earlier = []
    except _DAMAGE:
        path.rename(path.with_suffix(".damaged"))
        earlier = []
    starts = [*earlier, {**_environment(), **facts}]
    write_whole(path, (json.dumps({"starts": starts}, indent=1) + "\n").encode())


def recorded_starts(run_dir: Path) -> list[dict[str, Any]]:
    """One entry for each start, the first one first; none if they cannot be read, since nothing should fail for it."""
    try:
        return [dict(start) for start in _starts(run_dir / PROVENANCE_FILE)]
    except (OSError, *_DAMAGE):
        return []


def last_start(run_dir: Path) -> dict[str, Any]:
    """What the last start wrote down; empty if there is nothing to read."""
    return (recorded_starts(run_dir) or [{}])[-1]


def package_versions() -> dict[str, str | None]:
    """The versions of the packages that a run's numbers may depend on; None for what is not installed."""
    return {"gptscale": gptscale.__version__, **{name: _version(name) for name in PACKAGES}}


def _starts(path: Path) -> list[Any]:
    return list(json.loads(path.read_text(encoding="utf-8"))["starts"])


def _environment() -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "git_commit": output_of("git", "rev-parse", "HEAD").strip() or None,
        "git_changes": output_of("git", "status", "--porcelain").strip().splitlines(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

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
from gptscale.tracking.starts import PROVENANCE_FILE

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


def write_provenance(run_dir: Path, **facts: Any) -> None:
    """Add this start to the run folder's provenance.json. Raises OSError."""
    path = run_dir / PROVENANCE_FILE
    starts = [*_earlier_starts(path), {**_environment(), **facts}]
    write_whole(path, (json.dumps({"starts": starts}, indent=1) + "\n").encode())


def package_versions() -> dict[str, str | None]:
    """The versions of the packages that a run's numbers may depend on; None for what is not installed."""
    return {"gptscale": gptscale.__version__, **{name: _version(name) for name in PACKAGES}}


def _earlier_starts(path: Path) -> list[Any]:
    """The entries so far; a damaged file is set aside, since no run should stop for it."""
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["starts"])
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, RecursionError):
        path.rename(path.with_suffix(".damaged"))
        return []


def _environment() -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "git_commit": _git("rev-parse", "HEAD") or None,
        "git_changes": _git("status", "--porcelain").splitlines(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*args: str) -> str:
    """What git says of the working folder; nothing outside a repository or without git."""
    return output_of("git", *args).strip()

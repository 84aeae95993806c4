"""Where a run's numbers come from: provenance.json, one entry for each start."""

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gptscale

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
    """Add this start to the run folder's provenance.json."""
    path = run_dir / "provenance.json"
    starts = json.loads(path.read_text(encoding="utf-8"))["starts"] if path.exists() else []
    starts.append({**_environment(), **facts})
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"starts": starts}, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _environment() -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "gptscale": gptscale.__version__,
        "command": sys.argv,
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changes": (_git("status", "--porcelain") or "").splitlines(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*args: str) -> str | None:
    """What git says of the working folder; None outside a repository or without git."""
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

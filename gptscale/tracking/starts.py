"""What provenance.json says of a run's starts."""

import json
from pathlib import Path
from typing import Any

PROVENANCE_FILE = "provenance.json"


def recorded_starts(run_dir: Path) -> list[dict[str, Any]]:
    """One entry for each start, the first one first; none if they cannot be read, since nothing should fail for it."""
    try:
        starts = json.loads((run_dir / PROVENANCE_FILE).read_text(encoding="utf-8"))["starts"]
        return [dict(start) for start in starts]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def last_start(run_dir: Path) -> dict[str, Any]:
    """What the last start wrote down; empty if there is nothing to read."""
    return (recorded_starts(run_dir) or [{}])[-1]

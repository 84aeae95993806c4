"""A compiled run starts again by itself, whatever a kill left of its compiler's files."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptscale.config.load import dump_config, parse_config
from gptscale.config.schema import Config
from gptscale.tracking.jsonl import read_log


def started(cfg: Config, cache: Path) -> str:
    """Train in a process of its own, as a start after a kill is; returns what it said."""
    file = cfg.run.dir.with_suffix(".yaml")
    file.write_text(dump_config(cfg))
    own = {"TORCHINDUCTOR_CACHE_DIR": str(cache / "own"), "TMPDIR": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gptscale", "train", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **own}, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_libraries_that_a_killed_compiler_left_are_compiled_again(tmp_path: Path, values: dict[str, Any]) -> None:
    values["model"] |= {"n_layers": 1}
    values["train"] |= {"steps": 2, "compile": True}
    values["eval"] |= {"sequences": 1, "train_sequences": None}
    values["sample"]["prompts"] = []
    runs = [parse_config({**values, "run": {**values["run"], "dir": str(tmp_path / name)}}) for name in ("a", "b")]
    cache = tmp_path / "cache"
    cache.mkdir()
    assert "removed" not in started(runs[0], cache)
    libraries = sorted((cache / "own").rglob("*.so"))
    whole = [library.read_bytes() for library in libraries]
    assert whole, "nothing was compiled"
    for number, (library, content) in enumerate(zip(libraries, whole, strict=True)):
        library.write_bytes(content[: len(content) * (number % 3) // 3])  # nothing, a third, two thirds
    for header in cache.rglob("*.gch"):
        header.write_bytes(header.read_bytes()[:10_000])
        header.with_name(f"{header.stem}_CxxBuild").mkdir()  # which torch takes away at the end of a compilation
    said = started(runs[1], cache)
    assert re.findall(r"removed (.*\.so): a compiler was killed while it wrote it", said) == [*map(str, libraries)]
    losses = [[r["train/loss"] for r in read_log(cfg.run.dir / "log.jsonl") if "train/loss" in r] for cfg in runs]
    assert losses[0] == losses[1]

"""A compiled run starts again by itself, whatever a kill left of its compiler's files."""

import getpass
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


def started(cfg: Config, cache: Path, **env: str) -> str:
    """Train in a process of its own, as a start after a kill is; returns what it said."""
    file = cfg.run.dir.with_suffix(".yaml")
    file.write_text(dump_config(cfg))
    own = {"TORCHINDUCTOR_CACHE_DIR": str(cache / "own"), "TMPDIR": str(cache), "OMP_NUM_THREADS": "1", **env}
    command = [sys.executable, "-m", "gptscale", "train", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **own}, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compiled(values: dict[str, Any], run: Path) -> Config:
    """The least that is compiled."""
    changes = {"model": {"n_layers": 1}, "train": {"steps": 2, "compile": True}, "sample": {"prompts": []}}
    changes |= {"eval": {"sequences": 1, "train_sequences": None}, "run": {"dir": str(run)}}
    return parse_config({**values, **{name: {**values[name], **change} for name, change in changes.items()}})


@pytest.mark.long
def test_what_a_run_compiles_lies_in_the_users_cache(tmp_path: Path, values: dict[str, Any]) -> None:
    torchs_own = str(tmp_path / f"torchinductor_{getpass.getuser()}")  # as a launcher may leave it in the environment
    started(
        compiled(values, tmp_path / "a"), tmp_path, TORCHINDUCTOR_CACHE_DIR=torchs_own, XDG_CACHE_HOME=str(tmp_path)
    )
    assert list((tmp_path / "gptscale" / "compiled").rglob("*.so"))


@pytest.mark.long
def test_libraries_that_a_killed_compiler_left_are_compiled_again(tmp_path: Path, values: dict[str, Any]) -> None:
    runs = [compiled(values, tmp_path / name) for name in ("a", "b")]
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

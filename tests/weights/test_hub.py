"""Weights by the Hub's names, from a cache laid out as the Hub's client does. No network: a real process, offline."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptscale.cli.import_weights import import_weights
from gptscale.errors import WeightsError
from gptscale.weights.hub import NAMES, hub_name

COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"


def offline_import(name: str, cache: Path, to: Path, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **env}
    command = [sys.executable, "-m", "gptscale", "import", name, "--to", str(to), "data.tokenizer=bytes"]
    return subprocess.run(command, capture_output=True, text=True, env=settings, timeout=120)


def into_cache(folder: Path, repo: str, cache: Path) -> None:
    """Put a folder's files where the client would have them: content by hash, names as links, a ref to the commit."""
    home = cache / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, home / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / str(number))


def test_a_short_name_is_read_from_the_cache_without_a_network(saved: Any, tmp_path: Path) -> None:
    _, folder = saved()
    into_cache(folder, "openai-community/gpt2", tmp_path / "cache")
    done = offline_import("gpt2", tmp_path / "cache", tmp_path / "ours")
    assert done.returncode == 0, done.stderr
    # 257 x 48 tokens, 24 x 48 positions, 3 blocks of 12 x 48^2 + 13 x 48, and a norm of 2 x 48
    assert "weights: openai-community/gpt2 at 607a30d783df, 98,400 parameters" in done.stdout
    assert "logits (equal to transformers' within" in done.stdout


def test_a_pickled_model_of_the_cache_is_read_too(saved: Any, tmp_path: Path) -> None:
    import torch

    theirs, folder = saved()
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    into_cache(folder, "someone/small", tmp_path / "cache")
    done = offline_import("someone/small@main", tmp_path / "cache", tmp_path / "ours")
    assert done.returncode == 0, done.stderr


def test_what_the_cache_lacks_is_said_with_what_to_set(tmp_path: Path) -> None:
    done = offline_import("gpt2-xl", tmp_path / "cache", tmp_path / "ours")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "gptscale: openai-community/gpt2-xl is not in the Hub's cache, and HF_HUB_OFFLINE=1; on a machine with a network"
    )
    assert done.stderr.endswith("or give the path of a folder, which openai-community/gpt2-xl is not here\n")
    assert not list(tmp_path.glob("*ours*"))


def test_a_hub_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
    nowhere = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = offline_import("gpt2", tmp_path / "cache", tmp_path / "ours", **nowhere)
    assert done.returncode == 2
    assert "openai-community/gpt2 is not in the Hub's cache, and the Hub cannot be reached" in done.stderr


def test_a_name_that_the_hub_does_not_allow_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError,
        match="the Hub has no model some one/gpt2 for you .*; check the name, which is no path here either",
    ):
        import_weights("some one/gpt2", tmp_path / "ours")


def test_the_four_sizes_have_two_short_names_each() -> None:
    assert sorted(NAMES.values()) == sorted(
        [f"openai-community/gpt2{size}" for size in ("", "-medium", "-large", "-xl")] * 2
    )
    assert hub_name("1558M") == hub_name("gpt2-xl") == "openai-community/gpt2-xl"
    assert hub_name("me/mine@abc") == "me/mine@abc"

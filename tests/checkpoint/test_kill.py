"""SIGKILL at any moment of a save: a whole checkpoint to go on from, never a wrong one."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from gptscale import disk
from gptscale.checkpoint import layout, store
from gptscale.checkpoint.fence import Fence
from gptscale.checkpoint.find import load_fragments, newest_good
from gptscale.checkpoint.store import Store
from gptscale.runtime.fragments import Fragment
from tests.checkpoint.test_store import ABOUT, Alone, keeping

KILLS = 100
LONGEST_LIFE_S = 0.25
SLOW_S = 0.004
"""What every write, fsync and rename takes longer, so that kills fall between them all."""


def fragments(step: int) -> list[Fragment]:
    tensors = {"weight": torch.full((5000,), float(step)), "exp_avg": torch.full((5000,), -float(step))}
    return [Fragment("w", (5000,), 0, tensors, {"step": torch.tensor(float(step))})]


def slowed(function: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(SLOW_S)
        result = function(*args, **kwargs)
        time.sleep(SLOW_S)
        return result

    return slow


@contextlib.contextmanager
def slow_disk() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for owner, name in (
            (disk.os, "fsync"),
            (disk, "xxh3_128"),
            (Path, "rename"),
            (Path, "replace"),
            (store.shutil, "rmtree"),
            (store, "write_manifest"),
            (layout, "write_whole"),
        ):
            stack.enter_context(mock.patch.object(owner, name, slowed(getattr(owner, name))))
        yield


def save_until_killed(run_dir: Path, first: int) -> None:
    """The life of a process: saves one step after the other, as a run does."""
    writer = Store(Fence(run_dir), Alone(), keeping(2), **ABOUT)
    with slow_disk():
        for step in range(first, first + 10_000):
            writer.save(step, {"step": step}, fragments(step))
            writer.finish()
            with (run_dir / "durable").open("a") as file:  # the process says what it counts on
                file.write(f"{step}\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_hundred_kills_there_is_always_a_whole_checkpoint(tmp_path: Path) -> None:
    torch.set_num_threads(1)  # a forked process has no other threads
    (tmp_path / "durable").touch()
    rng = random.Random(5)
    where_killed = set()
    newest_step = 0
    kills = 0
    while kills < KILLS or (newest_step <= KILLS / 10 and kills < 5 * KILLS):  # a busy machine saves little
        kills += 1
        child = os.fork()
        if child == 0:
            try:
                save_until_killed(tmp_path, newest_step + 1)
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.0, LONGEST_LIFE_S))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it ended by itself"
        where_killed.add(tuple(sorted(p.name.split("-step")[0] for p in (tmp_path / "checkpoints").glob(".*"))))

        found = newest_good(tmp_path, Alone(), pytest.fail)
        promised = [int(line) for line in (tmp_path / "durable").read_text().splitlines()]
        if found is None:
            assert not promised
            continue
        path, manifest = found
        assert manifest.step >= max(promised, default=0)
        loaded = fragments(0)
        load_fragments(path, manifest, Alone(), loaded, ["w"])
        assert loaded[0].tensors["weight"].eq(manifest.step).all()
        assert loaded[0].tensors["exp_avg"].eq(-manifest.step).all()
        assert float(loaded[0].scalars["step"]) == manifest.step
        newest_step = manifest.step
    assert newest_step > KILLS / 10, "hardly anything was saved"
    assert len(where_killed) > 2, "the kills fell into the same places"


def test_a_flipped_bit_anywhere_is_found_and_its_file_is_named(tmp_path: Path) -> None:
    writer = Store(Fence(tmp_path), Alone(), keeping(2), **ABOUT)
    tensors = {"weight": torch.arange(20.0)}
    writer.save(1, {"step": 1}, [Fragment("w", (20,), 0, tensors, {"step": torch.tensor(1.0)})])
    saved = writer.finish()
    writer.close()
    assert saved is not None
    for path in saved.path.iterdir():
        content = path.read_bytes()
        for place in range(len(content)):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            path.write_bytes(flipped)
            with pytest.raises(store.CheckpointError, match=f"{path.name}|is no checkpoint|is a checkpoint of format"):
                store.verified(saved.path)
        path.write_bytes(content)
    assert store.verified(saved.path).step == 1

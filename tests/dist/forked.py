"""Ranks that are forked from a process which has imported everything, seconds sooner than a launcher's.

Only how the processes come to be differs: each has an environment of its own, runs the script it is given as
__main__, and meets the others as under torchrun. Tests of launching itself use the launchers.
"""

import gc
import multiprocessing
import os
import runpy
import socket
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NoReturn

PRELOADED = [
    *("torch", "torch._dynamo", "torch._inductor.compile_fx", "torch._inductor.select_algorithm"),
    *("transformers", "accelerate", "accelerate.utils.deepspeed"),
    *("deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer"),
    *("gptscale.training.run", "gptscale.cli.main"),
]

GRACE_S = 20.0
"""How long the other ranks may go on after one has failed."""

_CONTEXT = multiprocessing.get_context("forkserver")


def run_forked(world: int, what: list[str], env: dict[str, str], output: Path, timeout_s: float) -> int:
    """Run a script, or -m and a module, as `world` ranks, or without word of ranks for 0; returns the exit status."""
    os.environ["OMP_NUM_THREADS"] = "1"  # which the server reads as it loads its libraries
    _CONTEXT.set_forkserver_preload(PRELOADED)
    settings = [env] if world == 0 else [{**env, **_places(rank, world)} for rank in range(world)]
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())} if world else {}
    ranks = [_CONTEXT.Process(target=_live, args=(what, {**s, **port}, output)) for s in settings]
    for rank in ranks:
        rank.start()
    try:
        return _wait(ranks, time.monotonic() + timeout_s)
    finally:
        for rank in ranks:
            rank.kill()


def _places(rank: int, world: int) -> dict[str, str]:
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    return {name: str(value) for name, value in where.items()}


def _wait(ranks: list[ForkServerProcess], deadline: float) -> int:
    while any(rank.exitcode is None for rank in ranks):
        if time.monotonic() > deadline:
            raise TimeoutError("the ranks did not end in time")
        if any(rank.exitcode for rank in ranks):
            deadline = min(deadline, time.monotonic() + GRACE_S)
        time.sleep(0.02)
    return next((rank.exitcode for rank in ranks if rank.exitcode), 0)


def _live(what: list[str], env: dict[str, str], output: Path) -> NoReturn:
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.clear()
    os.environ.update(env)
    gc.freeze()  # or every collection would search all that was imported
    code: object = 1
    try:
        if what[0] == "-m":
            sys.argv = what[1:]
            runpy.run_module(what[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = what
            runpy.run_path(what[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])

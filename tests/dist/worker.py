"""One rank of a test: the `gptscale` command with eyes and faults, both set by environment variables.

WATCH names a folder for what a rank saw: the rates that the optimizer was run with, the state at the start of
training, the weights after the first update. FAULT=kind:rank lets a rank fail at its fourth step, or at the one that
FAULTY_CALL says. FP16_ON_CPU lets
fp16 pass, which the command wants a GPU for.
"""

import errno
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gptscale.checkpoint import portable
from gptscale.cli.main import main
from gptscale.data.loader import MicroBatch, StepLoader
from gptscale.runtime import distributed
from gptscale.runtime.engine import Engine
from gptscale.training import loop, run

FAULTY_CALL = int(os.environ.get("FAULTY_CALL", "4"))
RANK = int(os.environ.get("RANK", "0"))


def whole_state(engine: Engine) -> dict[str, torch.Tensor]:
    """All ranks' fragments put together, by kind/name; all ranks call this."""
    mine = [(f.name, f.start, {k: t.clone().cpu() for k, t in f.tensors.items()}) for f in engine.owned_fragments()]
    pieces: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for fragments in engine.gather(mine):
        for name, start, tensors in fragments:
            for kind, tensor in tensors.items():
                pieces.setdefault(f"{kind}/{name}", []).append((start, tensor))
    return {key: torch.cat([t for _, t in sorted(found, key=lambda x: x[0])]) for key, found in pieces.items()}


def state_hash(state: dict[str, torch.Tensor]) -> str:
    digest = sha256()
    for key in sorted(state):
        digest.update(key.encode() + state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def watch(folder: Path) -> None:
    """Write down what the engine did."""
    rates: list[float] = []
    fit, train_step = run.fit, loop.train_step

    def note_rate(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        rates.extend(group["lr"] for group in optimizer.param_groups if group["params"])

    def watched_fit(of: loop.Run, state: Any) -> bool:
        digest = state_hash(whole_state(of.engine))
        register_optimizer_step_pre_hook(note_rate)
        finished = fit(of, state)
        if RANK == 0:
            on_disk = [path.name for path in (folder / "disk").rglob("*.swp")]
            optimizer = type(of.engine.optimizer).__name__
            inductor = "torch._inductor.compile_fx" in sys.modules
            transformers = "transformers" in sys.modules
            watched = {
                "start": digest,
                "rates": rates,
                "on_disk": on_disk,
                "optimizer": optimizer,
                "inductor": inductor,
                "transformers": transformers,
            }
            (folder / "watched.json").write_text(json.dumps(watched))
        return finished

    def watched_step(engine: Engine, *args: Any, step: int, **kwargs: Any) -> Any:
        result = train_step(engine, *args, step=step, **kwargs)
        if step == 1 and os.environ.get("FAULT", "").startswith("nan"):
            (folder / f"after-nan-{RANK}").write_text(state_hash(whole_state(engine)))
        if step == 0:
            state = whole_state(engine)
            (folder / f"before-nan-{RANK}").write_text(state_hash(state))
            if RANK == 0:
                torch.save({k: t for k, t in state.items() if k.startswith("weight/")}, folder / "first.pt")
        return result

    run.fit, loop.train_step = watched_fit, watched_step


def fail(kind: str) -> None:
    """Let this rank's fourth step fail."""
    read, calls = StepLoader.next_step, 0

    def wrapped(act: Callable[[list[MicroBatch]], list[MicroBatch]]) -> Callable[[StepLoader], list[MicroBatch]]:
        def next_step(loader: StepLoader) -> list[MicroBatch]:
            nonlocal calls
            calls += 1
            batches = read(loader)
            return act(batches) if calls == FAULTY_CALL else batches

        return next_step

    if kind == "loader":
        StepLoader.next_step = wrapped(_broken_disk)  # type: ignore[method-assign]
    elif kind == "kill":
        if os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
            StepLoader.next_step = wrapped(_die)  # type: ignore[method-assign]
    elif kind in ("SIGTERM", "SIGINT"):
        StepLoader.next_step = wrapped(lambda batches: _signal(kind, batches))  # type: ignore[method-assign]
    elif kind == "spike":
        _spike()
    elif kind == "gone":
        StepLoader.next_step = wrapped(_delete_run)  # type: ignore[method-assign]
    elif kind == "full":
        StepLoader.next_step = wrapped(_fill_disk)  # type: ignore[method-assign]
    elif kind == "writer":
        portable.write_tensors = _broken_writer
    elif kind == "launch":
        os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = "/nowhere.json"
    elif kind == "hang":
        StepLoader.next_step = wrapped(lambda batches: _sleep(12, batches))  # type: ignore[method-assign]
    elif kind == "slow":
        StepLoader.next_step = wrapped(lambda batches: _sleep(3, batches))  # type: ignore[method-assign]
    else:
        seen = 0

        def faulty(engine: Engine, loss: torch.Tensor) -> None:
            nonlocal seen
            seen += 1
            if seen == FAULTY_CALL and kind == "oom":
                raise torch.OutOfMemoryError("tried to allocate 3 GiB")
            type(engine)._sound_backward(engine, loss * float("nan") if seen == FAULTY_CALL else loss)  # type: ignore[attr-defined]

        from gptscale.runtime.zero import ZeroEngine

        for cls in (Engine, ZeroEngine):
            cls._sound_backward = cls.backward  # type: ignore[attr-defined]
            cls.backward = faulty  # type: ignore[method-assign]


def _spike() -> None:
    """Let this rank report a high loss once."""
    train_step, calls = loop.train_step, 0

    def spiking(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = train_step(*args, **kwargs)
        return replace(result, loss=result.loss + 9) if calls == FAULTY_CALL else result

    loop.train_step = spiking


def _broken_disk(batches: list[MicroBatch]) -> list[MicroBatch]:
    raise OSError("the disk is gone")


def _broken_writer(*args: Any) -> Any:
    raise OSError(errno.EIO, "Input/output error")


def _die(batches: list[MicroBatch]) -> list[MicroBatch]:
    os.kill(os.getpid(), signal.SIGKILL)
    return batches


def _signal(name: str, batches: list[MicroBatch]) -> list[MicroBatch]:
    os.kill(os.getpid(), signal.Signals[name])
    return batches


def _delete_run(batches: list[MicroBatch]) -> list[MicroBatch]:
    shutil.rmtree(os.environ["RUN_DIR"])
    return batches


def _fill_disk(batches: list[MicroBatch]) -> list[MicroBatch]:
    with suppress(OSError), (Path(os.environ["RUN_DIR"]) / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))
    return batches


def _sleep(seconds: float, batches: list[MicroBatch]) -> list[MicroBatch]:
    time.sleep(seconds)
    return batches


if __name__ == "__main__":
    if "WATCH" in os.environ:
        watch(Path(os.environ["WATCH"]))
    if "FP16_ON_CPU" in os.environ:
        distributed._check_precision = lambda precision, kind: None
        run.peak_flops = lambda device, dtype: 1e12  # a CPU takes minutes for the product that measures it
    if "FAULT" in os.environ:
        what, who = os.environ["FAULT"].split(":")
        if int(who) == RANK:
            fail(what)
    main()

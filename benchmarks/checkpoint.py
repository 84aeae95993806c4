"""What a checkpoint costs, beside other ways to save the same state: interleaved rounds, medians.

    torchrun --standalone --nproc_per_node 2 benchmarks/checkpoint.py [--rounds 5] [--folder DIR]

The state is the weights and AdamW's moments of a 51 M parameter model under DDP, 612 MB. "durable" is the time until
the files are on disk; where a peer does not wait for the disk, its files are synced here. `dd` is one process that
writes one stream of as many bytes. Only gptscale writes the state from all ranks, each its share; `torch.save`, and
under DDP `accelerate.save_state`, from the first. What a way has written is deleted between the times, and their order
turned round from round to round.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from mistakes import positive, told

from gptscale.checkpoint.fence import Fence
from gptscale.checkpoint.store import Store
from gptscale.config.schema import CheckpointConfig, ModelConfig, OptimizerConfig
from gptscale.model.gpt import GPTModel
from gptscale.runtime import ranks
from gptscale.runtime.distributed import start_engine
from gptscale.runtime.engine import Engine
from gptscale.runtime.fragments import Fragment
from gptscale.training.optimizer import build_optimizer

MODEL = ModelConfig(emb_dim=512, n_heads=8, n_layers=8, context_length=256)
STEPS_BESIDE = 12
"""Steps timed with one save among them, and without."""

SAVE_EVERY_STEPS = 100

SETTLE_S = 1.0

Times = dict[str, list[float]]


def main() -> None:
    """Measure on all ranks, print on the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error("start it with torchrun, as --help says")
    engine = start_engine("fp32", 1)
    model = GPTModel(MODEL, seed=0).to(engine.device)
    engine.prepare(model, build_optimizer(model, OptimizerConfig(), engine.device), compile_model=False)
    train_once(engine)
    folder = args.folder / "gptscale-benchmark-checkpoint"
    try:
        times = measure(engine, folder, args.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if engine.is_first:
        report(times, state_bytes(engine))
    engine.close()
    ranks.leave()


def measure(engine: Engine, folder: Path, rounds: int) -> Times:
    """Seconds of each way in each round; the first round warms up and does not count."""
    times: Times = defaultdict(list)
    folder.mkdir(parents=True, exist_ok=True)
    dd, theirs, one_file = folder / "dd", folder / "accelerate", folder / "torch.pt"
    store = Store(Fence(folder / "ours"), engine, CheckpointConfig(keep=1), config={}, data_fingerprint="", versions={})
    copy = [t.clone() for f in engine.owned_fragments() for t in f.tensors.values()]
    for number in range(rounds + 1):
        ways: list[Callable[[], Times]] = [
            lambda: timed("dd", lambda: on_first(engine, lambda: run_dd(dd, state_bytes(engine))), dd),
            partial(save_ours, engine, store, number + 1),
            lambda: timed("accelerate.save_state", lambda: save_accelerate(engine, theirs), theirs),
            lambda: timed("torch.save", lambda: on_first(engine, lambda: save_torch(engine, one_file)), one_file),
            lambda: timed("memory copy", lambda: copy_share(engine.owned_fragments(), copy)),
            partial(beside_training, engine, store, 1000 + number),
        ]
        for way in ways if number % 2 else ways[::-1]:
            for name, seconds in way().items():
                times[name] += seconds if number else []
    store.close()
    return times


def settle() -> None:
    """Let the disk be done with what was before: one that frees deleted blocks by itself does so after a sync."""
    os.sync()
    time.sleep(SETTLE_S)
    dist.barrier()


def timed(name: str, work: Callable[[], object], written: Path | None = None) -> Times:
    """Seconds from when all ranks begin until all are done; what was written is then deleted."""
    settle()
    start = time.perf_counter()
    work()
    dist.barrier()
    seconds = time.perf_counter() - start
    if written is not None and dist.get_rank() == 0:
        shutil.rmtree(written) if written.is_dir() else written.unlink()
    return {name: [seconds]}


def save_ours(engine: Engine, store: Store, step: int) -> Times:
    """How long training stands still, and until the checkpoint is durable."""
    settle()
    store.save(step, {}, engine.owned_fragments())
    saved = store.finish()
    assert saved is not None
    return {"gptscale, stall": [saved.stall_s], "gptscale": [saved.durable_s]}


def beside_training(engine: Engine, store: Store, step: int) -> Times:
    """The same steps with a save among them, and without."""

    def steps(save: bool) -> None:
        for number in range(STEPS_BESIDE):
            train_once(engine)
            if save and number == 0:
                store.save(step, {}, engine.owned_fragments())
            elif not engine.any_rank(store.writing)[0]:
                store.settle()
        store.finish()

    return timed("steps", lambda: steps(save=False)) | timed("steps with a save", lambda: steps(save=True))


def train_once(engine: Engine) -> None:
    """One small step."""
    tokens = torch.randint(50257, (1, MODEL.context_length), device=engine.device)
    with engine.accumulate():
        engine.backward(engine.model(tokens, tokens) / tokens.numel())
    engine.update(1.0)


def copy_share(fragments: list[Fragment], into: list[torch.Tensor]) -> None:
    """The rank's share of the state into memory that is there."""
    for place, tensor in zip(into, (t for f in fragments for t in f.tensors.values()), strict=True):
        place.copy_(tensor)


def run_dd(path: Path, size: int) -> None:
    """What the disk takes for so many bytes from one process, in one stream."""
    command = ["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={size // 2**20}", "conv=fdatasync", "status=none"]
    subprocess.run(command, check=True)


def save_accelerate(engine: Engine, folder: Path) -> None:
    """Accelerate's own checkpoint, and the wait for the disk that it leaves out."""
    engine._accelerator.save_state(str(folder))
    on_first(engine, lambda: sync_files(folder))


def save_torch(engine: Engine, path: Path) -> None:
    """What a training script of one file does."""
    torch.save({"model": engine.bare_model.state_dict(), "optimizer": engine.optimizer.state_dict()}, path)
    sync_files(path.parent)


def sync_files(folder: Path) -> None:
    """Wait until every file in a folder is on disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def on_first(engine: Engine, work: Callable[[], object]) -> None:
    """Only on rank 0."""
    if engine.is_first:
        work()


def state_bytes(engine: Engine) -> int:
    """Weights and two moments in fp32."""
    return 12 * sum(p.numel() for p in engine.bare_model.parameters())


def report(times: Times, size: int) -> None:
    """A table of medians and the ratios that matter."""
    found = {name: median(values) for name, values in times.items()}
    print(f"\n{size / 1e6:,.0f} MB over {dist.get_world_size()} ranks, medians of {len(times['dd'])} rounds\n")
    print("| way | seconds | least | most | against dd |\n| --- | --- | --- | --- | --- |")
    for name in ("dd", "gptscale", "accelerate.save_state", "torch.save", "memory copy", "gptscale, stall"):
        least, most = min(times[name]), max(times[name])
        print(f"| {name} | {found[name]:.3f} | {least:.3f} | {most:.3f} | {found[name] / found['dd']:.2f} |")
    ratio = median(a / b for a, b in zip(times["gptscale"], times["dd"], strict=True))
    print(f"\ndurable against dd, median of the rounds' ratios: {ratio:.2f}")
    ratio = median(a / b for a, b in zip(times["gptscale, stall"], times["memory copy"], strict=True))
    print(f"stall against a memory copy of the share: {ratio:.2f}")
    pairs = zip(times["steps with a save"], times["steps"], strict=True)
    added = median((a - b) / (b / STEPS_BESIDE) for a, b in pairs)
    print(f"a save costs {added:.2f} steps: {added / SAVE_EVERY_STEPS:.2%} at one save in {SAVE_EVERY_STEPS} steps")


if __name__ == "__main__":
    raise SystemExit(told(main))

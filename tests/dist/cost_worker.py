"""One rank of a test: the `gptscale` command, with a count of what the rank sends and of what it keeps.

WATCH names a folder for cost-RANK.json, about the last step. "collectives" holds, for each micro-batch and then for the
update, the elements by kind of collective; "kept" holds the bytes after each micro-batch's backward, by what they
are; "wire" holds the bytes that left all ranks through the loopback interface, which should be theirs alone.
"""

import gc
import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gptscale.cli.main import main
from gptscale.runtime.engine import Engine
from gptscale.training import loop, run


class Collectives(TorchDispatchMode):
    """Counts the elements of the whole tensor of every collective; also sees those that DDP starts from C++."""

    def __init__(self) -> None:
        super().__init__()
        self.phases: list[Counter[str]] = [Counter()]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            operands = [sum(x.numel() for x in tree_leaves(a) if isinstance(x, Tensor)) for a in args]
            self.phases[-1][func._schema.name] += max(operands)  # of shards and the whole, the whole
        return func(*args, **(kwargs or {}))


def sent_bytes() -> int:
    """Bytes sent so far through the loopback interface of this network namespace."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))


def kept_bytes(engine: Engine) -> dict[str, int]:
    """Bytes of the tensors of this rank by what they are; a storage that several share counts once, as the first."""
    time.sleep(0.2)  # Gloo's thread lets go of a collective's tensors only after it has woken who waits for it
    gc.unfreeze()  # what the loop found at its start is looked at too
    gc.collect()  # DeepSpeed leaves cycles behind, which the next collection frees, whenever that comes
    weights = list(engine.bare_model.parameters())
    zero = getattr(engine, "_zero", None)
    masters = [p for group in engine.optimizer.param_groups for p in group["params"]]
    masters += getattr(zero, "fp32_partitioned_groups_flat", [])
    states = [t for state in engine.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    alive: list[Tensor] = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
    by_kind = {
        "weights": [*weights, *(getattr(p, "ds_tensor", None) for p in weights)],
        "masters": masters,
        "moments": [t for t in states if t.dim() > 0],
        "gradients": [*(t.grad for t in alive if t.is_leaf), *tree_leaves(getattr(zero, "averaged_gradients", []))],
        "other": alive,
    }
    seen: set[int] = set()
    kept = {}
    for kind, tensors in by_kind.items():
        new = {at: n for at, n in _storages(tensors).items() if at not in seen}
        kept[kind] = sum(new.values())
        seen |= set(new)
    return kept


def _storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Bytes by address of the memory that tensors lie in."""
    found = {}
    for t in tensors:
        if isinstance(t, Tensor):
            memory = (t._local_tensor if isinstance(t, DTensor) else t).untyped_storage()
            if memory.nbytes() and memory.data_ptr():  # not one on the meta device
                found[memory.data_ptr()] = memory.nbytes()
    return found


def watch(folder: Path) -> None:
    """Write down what the last step cost."""
    fit, train_step = run.fit, loop.train_step
    counter = Collectives()
    kept: list[dict[str, int]] = []
    wire: list[int] = []

    def counted_fit(of: loop.Run, state: Any) -> bool:
        backward = of.engine.backward

        def counted_backward(loss: Tensor) -> None:
            backward(loss)
            if state.step == of.plan.total_steps - 1:
                kept.append(kept_bytes(of.engine))
            counter.phases.append(Counter())

        of.engine.backward = counted_backward  # type: ignore[method-assign]
        with counter:
            return fit(of, state)

    def counted_step(engine: Engine, *args: Any, **kwargs: Any) -> Any:
        dist.barrier()
        before = sent_bytes()
        counter.phases = [Counter()]
        result = train_step(engine, *args, **kwargs)
        dist.barrier()
        wire.append(sent_bytes() - before)
        # The lesser of two steps: what a busy machine's TCP sends twice comes on top.
        cost = {"collectives": counter.phases, "kept": kept, "wire": min(wire[-2:])}
        (folder / f"cost-{engine.rank}.json").write_text(json.dumps(cost))
        return result

    run.fit, loop.train_step = counted_fit, counted_step


if __name__ == "__main__":
    watch(Path(os.environ["WATCH"]))
    main()

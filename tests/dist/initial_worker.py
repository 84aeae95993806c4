"""One rank that takes its share of other weights, and notes the most memory that it took for that."""

import gc
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gptscale.config.load import load_config
from gptscale.model.gpt import GPTModel
from gptscale.runtime import fsdp2, ranks
from gptscale.runtime.distributed import start_engine
from gptscale.runtime.zero import ZeroEngine
from gptscale.training.initial import load_initial_weights
from gptscale.training.optimizer import build_optimizer


def private_bytes() -> int:
    """Memory of this process alone, without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


class Peak(threading.Thread):
    """The most memory that was taken beyond the beginning's, from a thousand looks a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self._done = 0, False
        self._before = private_bytes()

    def run(self) -> None:
        while not self._done:
            self.bytes = max(self.bytes, private_bytes() - self._before)
            time.sleep(0.001)

    @classmethod
    def of(cls, work: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
        """Do work, and give the most bytes that it took."""
        peak = cls()
        peak.start()
        work(*args, **kwargs)
        peak._done = True
        peak.join()
        return peak.bytes


def held_bytes() -> int:
    """Memory of all tensors that somebody still refers to, written to or not; on a GPU it is taken at once."""
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter) and not o.is_meta]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def main(config: str, folder: str) -> None:
    cfg = load_config(config)
    ranks.join()
    engine = start_engine("fp32", 1)
    with torch.device("meta"):
        model = GPTModel(cfg.model, seed=None)
    optimizer = build_optimizer(model, cfg.optim, engine.device)
    peaks, held = {}, []
    shard = fsdp2.fully_shard

    def watched(*args: Any, **kwargs: Any) -> Any:
        done = shard(*args, **kwargs)
        held.append(held_bytes())
        return done

    fsdp2.fully_shard = watched  # type: ignore[assignment]
    if isinstance(engine, ZeroEngine):  # DeepSpeed's start takes memory of its own, which is not looked at here
        fill = engine._fill
        engine._fill = lambda *args: peaks.update(fill=Peak.of(fill, *args))  # type: ignore[method-assign]
        engine.prepare(model, optimizer, compile_model=False)
    else:
        peaks["fill"] = Peak.of(engine.prepare, model, optimizer, compile_model=False)
    peaks["held"] = max(held, default=0)
    peaks["load"] = Peak.of(load_initial_weights, cfg, engine)
    sums = {f.name: float(f.tensors["weight"].detach().double().sum()) for f in engine.weight_fragments()}
    (Path(folder) / f"rank-{engine.rank}.json").write_text(json.dumps({**peaks, "sums": sums}))
    ranks.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""One rank that takes its share of other weights, and notes the most memory that it took for that."""

import json
import sys
import threading
import time
from pathlib import Path

import torch

from gptscale.config.load import load_config
from gptscale.model.gpt import GPTModel
from gptscale.runtime import ranks
from gptscale.runtime.distributed import start_engine
from gptscale.training.initial import load_initial_weights
from gptscale.training.optimizer import build_optimizer


def private_bytes() -> int:
    """Memory of this process alone, without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


class Peak(threading.Thread):
    """The most memory that was taken at any of many looks."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.done = 0, False

    def run(self) -> None:
        while not self.done:
            self.bytes = max(self.bytes, private_bytes())
            time.sleep(0.001)


def main(config: str, folder: str) -> None:
    cfg = load_config(config)
    ranks.join()
    engine = start_engine("fp32", 1)
    with torch.device("meta"):
        model = GPTModel(cfg.model, seed=None)
    optimizer = build_optimizer(model, cfg.optim, engine.device)
    before = private_bytes()
    peak = Peak()
    peak.start()
    engine.prepare(model, optimizer, compile_model=False)
    load_initial_weights(cfg, engine)
    peak.done = True
    peak.join()
    weights = {f.name: float(f.tensors["weight"].double().sum()) for f in engine.weight_fragments()}
    (Path(folder) / f"rank-{engine.rank}.json").write_text(json.dumps({"bytes": peak.bytes - before, "sums": weights}))
    ranks.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])

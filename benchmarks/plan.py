"""`gptscale plan`'s step times against measured ones: one run calibrates, the others are predicted.

    python benchmarks/plan.py [--rounds 5] [--steps 12] [--config configs/demo.yaml] [section.key=value ...]

Trains the config and variants of it on this machine, in turn within every round, so that a busy machine slows all of
them. Predicts every variant from the first one of its round, as `plan --from` does, and exits with 1 if the median of
one is off by more than 15 %.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
from pathlib import Path

from mistakes import at_least, positive, told

from gptscale import load_config, prepare, train
from gptscale.config.schema import Config
from gptscale.planning.launch import Launch
from gptscale.planning.rates import Measured, calibrated_mfu, measured, plan_rates, processor
from gptscale.planning.steptime import step_time
from gptscale.runtime.device import describe_device, local_device
from gptscale.runtime.gpus import gpu_of_product
from gptscale.tracking.jsonl import LOG_FILE, read_log

CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"
LARGEST_ERROR = 0.15
QUIET = [
    "optim.warmup_steps=1",
    "train.log_every_steps=1",
    "eval.every_steps=null",
    "eval.sequences=1",
    "eval.train_sequences=null",
    "sample.prompts=[]",
    "checkpoint.every_steps=null",
]
BASE = "as it is"


def main() -> int:
    """Measure, predict and compare; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--steps", type=at_least(2), default=12)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    fixed = [*QUIET, f"train.steps={arguments.steps}", *arguments.overrides]
    changes = variants(load_config(arguments.config, fixed))
    configs = {name: load_config(arguments.config, [*fixed, *changed]) for name, changed in changes.items()}
    prepare(configs[BASE])
    runs = interleaved(configs, arguments.rounds)
    print(f"\n{describe_device(local_device())}, medians of {arguments.rounds} rounds\n")
    print(f"{'':24}measured   predicted / measured (least to most)")
    worst = 0.0
    for name, found in runs.items():
        ratios = sorted(predict(base, run.cfg) / step_s(run) for base, run in zip(runs[BASE], found, strict=True))
        ratio = statistics.median(ratios)
        worst = max(worst, abs(ratio - 1))
        took = statistics.median(step_s(run) for run in found)
        print(f"{name:24}{took:6.3f} s   {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(f"\nlargest error {worst:.1%}; at most {LARGEST_ERROR:.0%} is asked")
    return 0 if worst <= LARGEST_ERROR else 1


def variants(cfg: Config) -> dict[str, list[str]]:
    """What is changed in each, as overrides."""
    return {
        BASE: [],
        "micro-batches of 2": ["train.micro_batch_sequences=2"],
        "steps twice as large": [f"train.tokens_per_step={2 * cfg.train.tokens_per_step}"],
        "twice as deep": [f"model.n_layers={2 * cfg.model.n_layers}"],
        "half as wide again": [f"model.emb_dim={3 * cfg.model.emb_dim // 2}"],
        "blocks computed again": ["train.activation_checkpointing=true"],
    }


def interleaved(configs: dict[str, Config], rounds: int) -> dict[str, list[Measured]]:
    """What the runs of each round had on record; the order turns round from one to the next."""
    runs: dict[str, list[Measured]] = {name: [] for name in configs}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for name in sorted(configs, reverse=number % 2 == 1):
                runs[name].append(trained(configs[name], Path(folder) / f"{number}-{name}"))
    return runs


def trained(cfg: Config, folder: Path) -> Measured:
    """Train in a new folder and read its record."""
    cfg = cfg.model_copy(update={"run": cfg.run.model_copy(update={"dir": folder})})
    with contextlib.redirect_stdout(io.StringIO()):
        if not train(cfg):
            raise SystemExit("stopped by a signal")
    return measured(folder, cfg, describe_device(local_device()), Launch("none", 1), read_log(folder / LOG_FILE))


def step_s(run: Measured) -> float:
    """Seconds of a step."""
    return run.cfg.train.tokens_per_step / run.tokens_per_s


def predict(base: Measured, cfg: Config) -> float:
    """Seconds of a step of a config, from a run of another."""
    gpu = gpu_of_product(base.device) or processor(base, memory_bytes=0)
    rates = plan_rates(cfg, gpu, base.launch, mfu=calibrated_mfu(base, gpu))
    assert cfg.train.micro_batch_sequences is not None
    return step_time(cfg, Launch("none", 1, cfg.train.micro_batch_sequences), rates).total_s


if __name__ == "__main__":
    raise SystemExit(told(main))

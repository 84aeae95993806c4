"""The book's own training run, ours beside the published numbers.

    python benchmarks/the_verdict.py path/to/the-verdict.txt

Trains configs/the-verdict.yaml (124M parameters, fp32) on the short story (20,479 characters, 5,145 GPT-2
tokens) from chapter 2 of "Build a Large Language Model (From Scratch)" and prints its losses beside those
that chapter 5's notebook shows (ch05.ipynb in the book's repository since November 2025). The last it prints is of
step 85, after 86 of 90 updates, and its training losses on the way are over 5 of 9 batches (eval_iter=5); ours are
over all, the last after 90. Validation has the same two windows in both. Exits with 1 if ours end outside of bounds
around the ends of all its versions with eval_iter=5: 0.34 to 0.76 on training, 6.37 to 6.54 on validation.
"""

import argparse
import tempfile
from pathlib import Path

from mistakes import file, told

from gptscale import load_config, prepare, train
from gptscale.runtime.device import describe_device, local_device
from gptscale.tracking.jsonl import read_log

CONFIG = Path(__file__).parent.parent / "configs" / "the-verdict.yaml"
PUBLISHED_BEFORE = (10.99, 10.98)
PUBLISHED_AFTER = (0.57, 6.37)
PUBLISHED_BEST = "6.12 (epoch 6)"
ENDS_BELOW, ENDS_WITHIN = 1.0, (6.0, 6.7)


def main() -> int:
    """Train and compare; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=file)
    parser.add_argument("--seed", type=int, help="another seed than the config's")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places = [f"data.source.path={arguments.text}", f"data.dir={folder}/corpus", f"run.dir={folder}/the-verdict"]
        seed = [] if arguments.seed is None else [f"run.seed={arguments.seed}"]
        cfg = load_config(CONFIG, [*places, *seed])
        prepare(cfg)
        if not train(cfg):
            return 1  # stopped by a signal
        records = [r for r in read_log(cfg.run.dir / "log.jsonl") if "val/loss" in r]
    print(f"\non {describe_device(local_device())}, {cfg.train.precision}, seed {cfg.run.seed}\n")
    print("epoch  training  validation")
    for r in records:
        print(f"{r['epoch']:5.0f}  {r['eval_train/loss']:8.3f}  {r['val/loss']:10.3f}")
    return compare(records)


def compare(records: list[dict[str, float]]) -> int:
    """Print ours beside the published figures; 0 if the ends agree."""
    first, last = records[0], records[-1]
    best = min(records, key=lambda r: r["val/loss"])
    print("\n                              ours            published")
    before = (first["eval_train/loss"], first["val/loss"])
    after = (last["eval_train/loss"], last["val/loss"])
    print(f"before  training / validation {_pair(before)}   {_pair(PUBLISHED_BEFORE)}")
    print(f"after   training / validation {_pair(after)}   {_pair(PUBLISHED_AFTER)} (step 85, 5 of 9 batches)")
    print(f"best validation               {best['val/loss']:5.2f} (epoch {best['epoch']:.0f})  {PUBLISHED_BEST}")
    good = after[0] < ENDS_BELOW and ENDS_WITHIN[0] <= after[1] <= ENDS_WITHIN[1]
    asked = f"training is to end below {ENDS_BELOW}, validation within {ENDS_WITHIN[0]} and {ENDS_WITHIN[1]}"
    print(f"{'agrees' if good else 'DOES NOT AGREE'}: {asked}")
    return 0 if good else 1


def _pair(losses: tuple[float, float]) -> str:
    return f"{losses[0]:5.2f} / {losses[1]:5.2f}"


if __name__ == "__main__":
    raise SystemExit(told(main))

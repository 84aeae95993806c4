"""What the kept compile cache is worth: seconds to the first step of the first and of the second start of a config.

    python benchmarks/second_start.py [--rounds 2]

Each round has a user's cache of its own, in a temporary folder. The model has GPT-2 124M's twelve blocks, so what
there is to translate is the same, at half the width. Prints the second start's time as a share of the first's; exits
with 1 above 0.5.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from mistakes import positive, told
from resume_time import config, seconds_to_step
from side_by_side import hardware_precision

from gptscale.config.load import dump_config, parse_config
from gptscale.data.prepare import prepare
from gptscale.runtime.device import local_device

MOST = 0.5


def main() -> int:
    """Measure and compare; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=2)
    rounds = parser.parse_args().rounds
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
    shares = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = config(folder).model_dump(mode="json")
        values["model"] |= {"emb_dim": 384, "n_heads": 6, "n_layers": 12}
        values["train"] |= {"compile": True, "precision": hardware_precision(local_device())}
        cfg = parse_config(values)
        prepare(cfg, say=lambda line: None)
        path = folder / "config.yaml"
        path.write_text(dump_config(cfg))
        for number in range(rounds):
            os.environ["XDG_CACHE_HOME"] = str(folder / f"cache-{number}")
            first, second = (seconds_to_step(path, folder / f"run-{number}-{start}", 1, 1) for start in range(2))
            shares.append(second / first)
            print(f"first start {first:.1f} s, second {second:.1f} s: {shares[-1]:.2f}", flush=True)
    share = statistics.median(shares)
    print(f"median {share:.2f}; at most {MOST} is asked")
    return 0 if share <= MOST else 1


if __name__ == "__main__":
    raise SystemExit(told(main))

"""The scripts that README's figures come from: they reach into the package, and have to go on with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"

IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
"""

KILLED = """
import sys
from pathlib import Path
from side_by_side import SHAPES, Contestant, Setup, write_batches
write_batches(Path(sys.argv[1]), 1, 1, SHAPES["tiny"]["context_length"])
setup = Setup("gptscale_step", SHAPES["tiny"], sys.argv[1], precision="fp32", compile=False)
with Contestant("ours", setup) as ours:
    ours.wait()._process.kill()
    ours._process.wait()
    ours.turn(1)
"""

COMPARED = """
from gpu import COMPARED, PEERS, Table, compare
nanogpt, trainer = [name for name, _ in PEERS.values()]
losses, table = {COMPARED: [1.0], nanogpt: [1.02], trainer: [1.0]}, Table(1)
compare({name: [1.0] for name in losses}, losses, table)
print(*table.left_out, *table.missed, sep="\\n")
"""


def run(*args: str, timeout_s: float = 400) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{BENCHMARKS}"}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=env, timeout=timeout_s)


def test_every_script_finds_what_it_imports() -> None:
    names = [path.stem for path in sorted(BENCHMARKS.glob("*.py"))]
    peers = [f"peers.{path.stem}" for path in sorted((BENCHMARKS / "peers").glob("*.py")) if path.stem != "__init__"]
    assert {"gpu", "train", "peers.gptscale_loop"} <= {*names, *peers}
    done = run("-c", IMPORT_ALL, *names, *peers)
    assert done.returncode == 0, done.stderr


def test_a_loop_that_was_killed_is_one_line(tmp_path: Path) -> None:
    done = run("-c", KILLED, str(tmp_path / "batches.npy"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ours was killed; if that was for memory, let fewer take part at a time"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("train.py --gate-steps 0", "argument --gate-steps: 0 is below 1"),
        ("train.py --only book", "--only book needs --book PATH"),
        ("generate.py --emb-dim 65", "generate.py: n_heads=12 does not divide emb_dim=65"),
        ("train.py --json /nowhere/x.json", "--json=/nowhere/x.json would lie in a folder that is not there"),
        ("optimizer.py --parameters nan", "argument --parameters: invalid"),
        ("optimizer.py --parameters inf", "argument --parameters: invalid"),
        ("gpu.py --tiny --minutes nan", "--minutes has to be a number above 0"),
        ("checkpoint.py", "start it with torchrun"),
        ("plan.py --config /nowhere", "plan.py: config file /nowhere does not exist"),
    ],
)
def test_a_mistaken_start_is_one_line(args: str, said: str) -> None:
    script, *others = args.split()
    done = run(str(BENCHMARKS / script), *others)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_writing_text_can_be_tried_with_a_small_model() -> None:
    shape = ["--emb-dim=64", "--n-layers=2", "--n-heads=4"]
    done = run(str(BENCHMARKS / "generate.py"), *shape, "--new-tokens=16")
    assert "the ways wrote the same tokens" in done.stdout, done.stderr


LAUNCHED = """
import os, sys, time
from pathlib import Path
from side_by_side import SHAPES, Contestant, Setup, write_batches
write_batches(Path(sys.argv[1]), 1, 2, SHAPES["tiny"]["context_length"])
setup = Setup("gptscale_step", SHAPES["tiny"], sys.argv[1], precision="fp32", compile=False)
torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
with Contestant("two", setup, torchrun) as two:
    two.wait()
    print(*Path(f"/proc/{two._process.pid}/task/{two._process.pid}/children").read_text().split(), flush=True)
    raise SystemExit
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_a_contest_that_breaks_off_leaves_no_rank_at_work(tmp_path: Path) -> None:
    done = run("-c", LAUNCHED, str(tmp_path / "batches.npy"))
    ranks = done.stdout.split()
    assert len(ranks) == 2, done.stderr
    assert not [rank for rank in ranks if Path(f"/proc/{rank}").exists()]


def test_the_gpu_benchmark_tells_of_losses_that_differ_and_of_bounds_that_are_missed() -> None:
    done = run("-c", COMPARED)
    assert done.stdout.splitlines() == [
        "not compared with nanoGPT, compiled: losses differ by 0.0200",
        "missed: gptscale, 124M, against Trainer, compiled: 1.000 (1.000 to 1.000); at least 1.5 is asked",
    ], done.stderr


@pytest.mark.long
def test_the_gpu_benchmark_fills_its_table_with_a_tiny_model() -> None:
    done = run(str(BENCHMARKS / "gpu.py"), "--tiny", "--minutes", "15", timeout_s=1000)
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout[done.stdout.index("rounds of") :]
    for name in ("124M", "350M", "774M", "1558M", "whole loop", "Trainer, compiled"):
        assert f"{name} " in table, table
    assert "against Trainer, compiled: " in table
    assert "whole loop against the step on tokens that lie on the device: " in table
    assert table.count(" GB  3 rounds") == 6
    assert "left out" not in table
    assert "broke off" not in table

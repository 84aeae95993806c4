"""Two network namespaces as two machines: ranks that meet over a network train as ranks on one machine do."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gptscale.config.load import dump_config
from tests.dist.conftest import ENGINES, ROOT, Done, changed

pytestmark = pytest.mark.dist

NAMES = [f"gptscale{os.getpid()}{letter}" for letter in "ab"]
LINKS = [f"gs{os.getpid()}{letter}" for letter in "ab"]  # a link's name has at most 15 characters
ADDRESSES = ["10.77.0.1", "10.77.0.2"]
ENDS_S = 150


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def machines() -> Iterator[list[list[str]]]:
    """The words before a command that run it on the first and on the second machine."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    with ExitStack() as stack:
        try:
            for name in NAMES:
                ip("netns", "add", name)
                stack.callback(remove, name)
            ip("link", "add", LINKS[0], "netns", NAMES[0], "type", "veth", "peer", "name", LINKS[1], "netns", NAMES[1])
        except FileNotFoundError:
            pytest.skip("needs the command ip, of iproute2")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        for name, link, address in zip(NAMES, LINKS, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", link, "up")
        yield [["ip", "netns", "exec", name] for name in NAMES]


def remove(name: str) -> None:
    """Delete a namespace with the processes left in it; its end of the link goes with it."""
    left = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
    subprocess.run(["kill", "-9", *left], capture_output=True)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def node(number: int, ranks: int) -> list[str]:
    """torchrun on one of the machines; the first hosts the rendezvous.

    Its host would not know itself by the address, nor would the host's name lead the other machine to it.
    """
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--nproc_per_node={ranks}"),
        *(
            "--rdzv-id=two",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={ADDRESSES[0]}:29420",
            f"--local-addr={ADDRESSES[number]}",
        ),
        f"--rdzv-conf=is_host={1 - number}",
    ]


def train_across(machines: list[list[str]], cfg: Any, env: dict[str, str], ranks: int = 1) -> str:
    """Train with ranks on each machine; what the machines printed."""
    folder = cfg.run.dir.parent
    (folder / "config.yaml").write_text(dump_config(cfg))
    started = []
    with ExitStack() as stack:
        for number, machine in enumerate(machines):
            settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
            output = stack.enter_context((folder / f"machine-{number}.txt").open("w"))
            command = [*machine, *node(number, ranks), "-m", "gptscale", "train", str(folder / "config.yaml")]
            process = subprocess.Popen(command, env=settings, stdout=output, stderr=subprocess.STDOUT)
            stack.callback(process.wait)
            stack.callback(process.kill)
            started.append(process)
        codes = [process.wait(ENDS_S) for process in started]
    printed = "\n".join((folder / f"machine-{number}.txt").read_text() for number in range(2))
    assert codes == [0, 0], printed
    return printed


def sent_bytes(machine: list[str], number: int) -> int:
    counter = f"/sys/class/net/{LINKS[number]}/statistics/tx_bytes"
    return int(subprocess.run([*machine, "cat", counter], capture_output=True, text=True, check=True).stdout)


@pytest.mark.long
@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_two_machines_train_like_one_with_two_ranks(
    machines: list[list[str]],
    trace: Callable[[str, int], Done],
    plain_values: dict[str, Any],
    tmp_path: Path,
    engine: str,
) -> None:
    one, cfg = trace(engine, 2), changed(plain_values, tmp_path)
    before = [sent_bytes(machine, number) for number, machine in enumerate(machines)]
    output = train_across(machines, cfg, ENGINES[engine])
    sent = [sent_bytes(machine, number) - before[number] for number, machine in enumerate(machines)]
    assert f"2 x 2 micro-batches of 2 sequences, fp32, engine {engine}" in output
    two = Done(cfg, 0, output)
    for measurement in ("train/loss", "train/grad_norm", "val/loss", "eval_train/loss"):
        assert two.log(measurement) == one.log(measurement), measurement
    assert len(two.log("train/loss")) == 50
    # In each of 50 steps a rank sends all of some 36,000 gradients of 4 bytes to the other machine, or more
    assert min(sent) > 50 * 36_000 * 4


EACH_ITS_COPY = {**ENGINES["fsdp2"], "ACCELERATE_USE_PARALLELISM_CONFIG": "true"}


def test_under_hsdp_weights_stay_on_their_machine(
    machines: list[list[str]], trace: Callable[[str, int], Done], plain_values: dict[str, Any], tmp_path: Path
) -> None:
    steps = 10
    cfg = changed(plain_values, tmp_path, train={"steps": steps}, optim={"decay_steps": 50})
    before = [sent_bytes(machine, number) for number, machine in enumerate(machines)]
    output = train_across(machines, cfg, EACH_ITS_COPY, ranks=2)
    sent = [sent_bytes(machine, number) - before[number] for number, machine in enumerate(machines)]
    assert "4 x 1 micro-batches of 2 sequences, fp32, engine hsdp with 2 copies of the state" in output
    found, expected = Done(cfg, 0, output).log("train/loss"), trace("none", 1).log("train/loss")[:steps]
    assert found == pytest.approx(expected, rel=1e-5)
    # In each step the two ranks of a machine send their halves of some 36,000 gradients of 4 bytes to those of the
    # other; what all ranks agree on comes beside it. Under FSDP2 it would be more than three times as much.
    assert min(sent) > steps * 36_000 * 4
    assert max(sent) < 2 * steps * 36_000 * 4

"""However a preparation is spread, stopped or doubled, the corpus is the same to the byte."""

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gptscale.config.load import dump_config
from gptscale.config.schema import Config
from gptscale.data import estimate
from gptscale.data import workers as module
from gptscale.data.corpus import open_corpus
from gptscale.data.manifest import load_manifest
from gptscale.data.prepare import finish, prepare, prepare_task
from gptscale.data.unit import Unit, receipt_path
from gptscale.errors import ConfigError, DataError

Make = Callable[..., Config]
UNITS = 12


@pytest.fixture
def text(tmp_path: Path) -> Path:
    lines = [" ".join(f"w{hashlib.sha256(b'%d' % (i * j)).hexdigest()[:5]}" for j in range(40)) for i in range(600)]
    (tmp_path / "x.txt").write_text("\n".join(lines))
    return tmp_path / "x.txt"


@pytest.fixture
def make(text: Path, make_config: Make) -> Callable[[str], Config]:
    """The same corpus, in a folder of a given name: 12 units of 50 lines."""

    def config(folder: str) -> Config:
        data = {
            "dir": text.parent / folder,
            "validation_fraction": 0.1,
            "documents_per_shard": 600 // UNITS,
            "tokenizer": "gpt2",
        }
        return make_config(text, data=data, model={"vocab_size": 50257})

    return config


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def quiet(line: str) -> None:
    pass


def lengthen(text: Path, times: int) -> None:
    """Give a preparation work that goes on long after its interruption, however busy the machine is."""
    text.write_text("\n".join([text.read_text()] * times))


@pytest.fixture
def whole(make: Callable[[str], Config]) -> dict[str, str]:
    return undisturbed(make)


def undisturbed(make: Callable[[str], Config]) -> dict[str, str]:
    """The files of an uninterrupted preparation by one worker."""
    cfg = make("whole")
    prepare(cfg, quiet)
    return contents(cfg.data.dir)


@pytest.mark.parametrize(("workers", "start"), [(2, "spawn"), (2, "fork"), (7, "fork")])
def test_any_number_of_workers_makes_the_same_files(
    workers: int, start: str, make: Callable[[str], Config], whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make("corpus")
    monkeypatch.setattr(module, "_context", lambda: multiprocessing.get_context(start))
    prepare(cfg, quiet, workers=workers)
    assert len(whole) == UNITS * (2 + 2 + 1) + 2
    assert contents(cfg.data.dir) == whole


@pytest.mark.parametrize("tasks", [1, 2, 5, 12, 20])
def test_any_number_of_tasks_makes_the_same_files(
    tasks: int, make: Callable[[str], Config], whole: dict[str, str]
) -> None:
    cfg = make("corpus")
    for task in reversed(range(tasks)):
        prepare_task(cfg, task, tasks, quiet)
    with pytest.raises(DataError, match="holds no corpus"):
        load_manifest(cfg.data.dir)
    finish(cfg, quiet)
    assert contents(cfg.data.dir) == whole


def test_finishing_takes_away_what_a_lost_machine_was_writing(
    make: Callable[[str], Config], whole: dict[str, str]
) -> None:
    cfg = make("corpus")
    for task in range(2):
        prepare_task(cfg, task, 2, quiet)
    (cfg.data.folder / ".train-00001.bin.lost.817.c8b98cc1.tmp").write_bytes(b"half")
    finish(cfg, quiet)
    assert contents(cfg.data.folder) == whole


def test_finishing_names_the_missing_units(make: Callable[[str], Config], whole: dict[str, str]) -> None:
    cfg = make("corpus")
    prepare_task(cfg, 0, 4, quiet)  # units 0, 4, 8
    receipt_path(cfg.data.dir, 4).unlink()
    with pytest.raises(DataError, match=r"10 of 12 units are not there: 1-7, 9-11; run their tasks again"):
        finish(cfg, quiet)
    for task in (1, 2, 3):
        prepare_task(cfg, task, 4, quiet)
    shard = cfg.data.dir / "train-00008.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"2 of 12 units are not there: 4, 8; run their tasks again"):
        finish(cfg, quiet)
    prepare_task(cfg, 0, 4, quiet)
    finish(cfg, quiet)
    assert contents(cfg.data.dir) == whole


@pytest.mark.parametrize("task", [4, 7])
def test_a_task_beyond_the_tasks_is_refused(task: int, make: Callable[[str], Config]) -> None:
    with pytest.raises(ConfigError, match=rf"--task={task} is none of 0 to 3, which --tasks=4 asks for"):
        prepare_task(make("corpus"), task, 4, quiet)


def command(cfg: Config, *options: str) -> list[str]:
    path = cfg.data.dir.with_suffix(".yaml")
    path.write_text(dump_config(cfg))
    return [sys.executable, "-m", "gptscale", "prepare", str(path), *options]


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 3])
def test_killed_at_any_moment_it_goes_on_to_the_same_files(
    workers: int, text: Path, make: Callable[[str], Config]
) -> None:
    lengthen(text, 2)
    cfg, moments = make("corpus"), random.Random(workers)
    kills = 0
    while not (cfg.data.dir / "manifest.json").exists():
        process = subprocess.Popen(command(cfg, f"--workers={workers}"), stdout=subprocess.DEVNULL)
        wait_for_units(cfg.data.dir, process, more=moments.randint(0, 5))
        time.sleep(moments.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 4
    prepare(cfg, quiet)
    assert contents(cfg.data.dir) == undisturbed(make)


def wait_for_units(folder: Path, process: subprocess.Popen[bytes], more: int) -> None:
    """Wait until so many more units are finished, or the process ended."""
    before = len(list(folder.glob("unit-*.json")))
    while process.poll() is None and len(list(folder.glob("unit-*.json"))) < before + more:
        time.sleep(0.001)


def test_workers_end_with_a_killed_parent(text: Path, make: Callable[[str], Config]) -> None:
    lengthen(text, 300)
    cfg = make("corpus")
    process = subprocess.Popen(command(cfg, "--workers=2"), stdout=subprocess.DEVNULL)
    while len(workers := children(process.pid)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    wait_for_the_end(workers)


def test_ctrl_c_ends_all_workers_and_leaves_nothing_half(text: Path, make: Callable[[str], Config]) -> None:
    lengthen(text, 8)
    cfg = make("corpus")
    returncode, said, workers = interrupted(cfg)
    assert returncode == 130
    assert said.startswith("gptscale: interrupted")
    assert len(said.splitlines()) == 1
    wait_for_the_end(workers)
    assert not (cfg.data.dir / "manifest.json").exists()
    prepare(cfg, quiet, workers=2)
    assert contents(cfg.data.dir) == undisturbed(make)


def test_a_worker_that_is_spawned_does_not_hear_ctrl_c_while_it_is_loaded() -> None:
    """In a process of its own, where spawn must first start its tracker of resources."""
    script = (
        "import multiprocessing, signal, time\n"
        "from gptscale.data.workers import _holding_ctrl_c_back\n"
        "with _holding_ctrl_c_back():\n"
        "    for _ in range(2):\n"
        "        multiprocessing.get_context('spawn').Process(target=time.sleep, args=(0,)).start()\n"
        "        print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))\n"
    )
    assert said_by(script) == ["True", "True"]


def test_ctrl_c_that_another_thread_takes_waits_until_the_workers_are_started() -> None:
    script = (
        "import multiprocessing, os, signal, threading, time\n"
        "from gptscale.data.workers import _holding_ctrl_c_back\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "try:\n"
        "    with _holding_ctrl_c_back():\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(0.2)\n"
        "        print('started')\n"
        "except KeyboardInterrupt:\n"
        "    print('told')\n"
    )
    assert said_by(script) == ["started", "told"]


def said_by(script: str) -> list[str]:
    """The words that a Python process of its own prints."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def interrupted(cfg: Config) -> tuple[int, str, list[str]]:
    """Ctrl-C to a preparation at work: its exit status, what it said, and its workers."""
    process = subprocess.Popen(
        command(cfg, "--workers=2"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while len(workers := children(process.pid)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers hear it too
    _, said = process.communicate(timeout=60)
    return process.returncode, said, workers


def wait_for_the_end(workers: list[str]) -> None:
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def children(pid: int) -> list[str]:
    """The worker processes of a process; it may also start, for a moment, a tool or spawn's resource tracker.

    A tool bears its parent's name until it is loaded, so one process alone may be no worker: wait for two.
    """
    tasks = Path(f"/proc/{pid}/task")
    found = [child for task in tasks.glob("*") for child in read(task / "children").split()]
    words = {child: read(Path(f"/proc/{child}/cmdline")).split("\0") for child in found}
    return [
        child for child in found if words[child][0] == sys.executable and "resource_tracker" not in str(words[child])
    ]


def read(path: Path) -> str:
    """What a file of /proc says, whose thread or process may end at any moment."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_two_processes_on_the_same_units_do_no_harm(make: Callable[[str], Config], whole: dict[str, str]) -> None:
    cfg = make("corpus")
    both = [subprocess.Popen(command(cfg, "--workers=1"), stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert contents(cfg.data.dir) == whole


def test_a_worker_that_is_ended_from_outside_is_one_line(text: Path, make: Callable[[str], Config]) -> None:
    lengthen(text, 300)
    cfg = make("corpus")
    process = subprocess.Popen(command(cfg, "--workers=2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(workers := children(process.pid)) < 2:
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(int(workers[0]), signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 2
    assert "gptscale: a worker process was ended from outside" in said
    assert "--workers=2" in said


def test_a_need_beyond_the_free_disk_is_refused_before_the_start(
    make: Callable[[str], Config], whole: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cfg = make("corpus")
    written = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    headers = UNITS * 2 * (1024 + 128) + sum(p.stat().st_size for p in (tmp_path / "whole").glob("*.json"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=(written - headers) // 2))
    with pytest.raises(DataError, match=r"corpus needs about 0\.000\d+ GB, and 0\.000\d+ GB are free; free some space"):
        prepare(cfg, quiet)
    assert not list(cfg.data.dir.glob("*.bin"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=(written - headers) * 11 // 10))
    prepare(cfg, quiet)
    assert contents(cfg.data.dir) == whole


@pytest.mark.parametrize(
    ("count", "chosen"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (10, [0, 2, 5, 7])]
)
def test_the_estimate_looks_at_units_from_all_over_the_source(count: int, chosen: list[int]) -> None:
    units = [Unit(number, 0, 1) for number in range(count)]
    assert [unit.number for unit in estimate._spread(units)] == chosen


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder]).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_up_in_the_middle_is_one_line_and_leaves_nothing_half(
    workers: int,
    make: Callable[[str], Config],
    whole: dict[str, str],
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = make("small/corpus")
    monkeypatch.setattr(estimate, "estimate_need", lambda job, units: None)
    with pytest.raises(DataError, match=r"no space left to write \S+, data.dir=.*small/corpus; free some space"):
        prepare(cfg, quiet, workers=workers)
    assert len(list(cfg.data.dir.glob("unit-*.json"))) > 1
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    prepare(cfg, quiet)
    assert contents(cfg.data.dir) == whole
    assert len(open_corpus(cfg.data.dir).train) > 0


def test_it_says_how_far_it_is_and_what_there_is_in_the_end(make: Callable[[str], Config]) -> None:
    said: list[str] = []
    manifest = prepare(make("corpus"), said.append)
    tokens = sum(shard.tokens for shard in manifest.shards)
    last = next(line for line in said if line.startswith("unit 12"))
    assert f"; 12/12 units, 600 documents, {tokens:,} tokens, " in last
    assert last.endswith(" MB/s, 0 s left")
    val = sum(shard.tokens for shard in manifest.of("val"))
    size = sum(shard.text_bytes for shard in manifest.shards)
    share = f"{size / tokens:.2f} bytes per token, {val / tokens:.2%} for validation"
    assert f"all: 600 documents, {tokens:,} tokens, {share}" in said
    longest = max((found, shard.file) for shard in manifest.shards for found in shard.longest)
    (count, row), file = longest
    assert any(line.startswith(f"longest documents: {count:,} tokens (document {row}, in {file})") for line in said)

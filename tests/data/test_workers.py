"""Workers start as forks only where that is safe, and what fails in one is told with its place."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptscale.config.schema import Config
from gptscale.data import job, unit, workers
from gptscale.data.prepare import prepare
from gptscale.errors import DataError

Make = Callable[..., Config]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")
def test_a_process_without_other_threads_forks_and_another_spawns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    assert workers._context().get_start_method() == "fork"
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert workers._context().get_start_method() == "spawn"


def test_an_error_keeps_where_it_arose_on_its_way_to_another_process() -> None:
    try:
        raise ZeroDivisionError("of ours")
    except ZeroDivisionError as error:
        sent = pickle.loads(pickle.dumps(workers._with_traceback(error)))
    assert "test_workers.py" in sent.__notes__[0]
    users = pickle.loads(pickle.dumps(workers._with_traceback(DataError("a user's"))))
    assert (str(users), hasattr(users, "__notes__")) == ("a user's", False)


@pytest.fixture
def cfg(tmp_path: Path, make_config: Make, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Four units, made by forks, which see what a test has patched."""
    (tmp_path / "x.txt").write_text("\n".join(f"line {i} of the text" for i in range(40)))
    monkeypatch.setattr(workers, "_context", lambda: multiprocessing.get_context("fork"))
    return make_config(tmp_path / "x.txt", data={"documents_per_shard": 10, "validation_fraction": 0.1})


@pytest.mark.parametrize("where", ["write_unit", "seal"])
def test_what_fails_in_a_worker_is_raised_here_and_no_worker_is_left(
    where: str, cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*of: Any) -> Any:
        raise ZeroDivisionError(f"in {os.getpid()}")

    monkeypatch.setattr(*((job, "write_unit") if where == "write_unit" else (unit.WrittenUnit, "seal")), fail)
    with pytest.raises(ZeroDivisionError) as raised:
        prepare(cfg, lambda line: None, workers=2)
    assert str(raised.value) != f"in {os.getpid()}"
    assert multiprocessing.active_children() == []
    assert not list(cfg.data.folder.glob(".*.tmp"))


@pytest.mark.parametrize("number", [0, 1])
def test_one_unit_that_cannot_be_sealed_is_told_though_more_follow(
    number: int, cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = unit.WrittenUnit.seal

    def fail_once(written: unit.WrittenUnit) -> unit.Receipt:
        if written.receipt_path.name == f"unit-{number:05d}.json":
            raise ZeroDivisionError("once")
        return seal(written)

    monkeypatch.setattr(unit.WrittenUnit, "seal", fail_once)
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for ever"))
    signal.alarm(60)
    try:
        with pytest.raises(ZeroDivisionError, match="once"):
            prepare(cfg, lambda line: None, workers=2)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_worker_begins_a_unit_while_the_one_before_is_on_its_way_to_the_disk(
    cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One worker holds unit 1 until unit 0 is sealed, and unit 0 is sealed when its worker has begun another.
    context = multiprocessing.get_context("fork")
    begun, sealed = context.Event(), context.Event()
    write, seal = job.write_unit, unit.WrittenUnit.seal

    def write_in_turn(which: unit.Unit, *rest: Any) -> unit.WrittenUnit:
        if which.number > 1:
            begun.set()
        assert which.number != 1 or sealed.wait(60)
        return write(which, *rest)

    def seal_in_turn(written: unit.WrittenUnit) -> unit.Receipt:
        first = written.receipt_path.name == "unit-00000.json"
        assert not first or begun.wait(60)
        receipt = seal(written)
        if first:
            sealed.set()
        return receipt

    monkeypatch.setattr(job, "write_unit", write_in_turn)
    monkeypatch.setattr(unit.WrittenUnit, "seal", seal_in_turn)
    manifest = prepare(cfg, lambda line: None, workers=2)
    assert sum(shard.documents for shard in manifest.shards) == 40

"""Two starts on one run folder: the later one is the run."""

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gptscale.checkpoint import fence as module
from gptscale.checkpoint import store as store_module
from gptscale.checkpoint.fence import Fence, sweep
from gptscale.checkpoint.layout import list_checkpoints, read_manifest
from gptscale.checkpoint.store import Store
from gptscale.errors import CheckpointError, TrainingError
from tests.checkpoint.test_store import ABOUT, Alone, flip_bit, fragments, keeping

TAKEN_OVER = r"run.dir=.* was taken over by a later start \(no job, process \d+ on .*\); this one has written nothing"


def store_of(fence: Fence, keep: int | None = None) -> Store:
    return Store(fence, Alone(), keeping(keep), **ABOUT)


def save(store: Store, step: int, value: float) -> None:
    store.save(step, {"value": value}, fragments(value))
    store.finish()


def values_on_disk(run_dir: Path) -> dict[int, float]:
    manifests = [read_manifest(path) for path in list_checkpoints(run_dir)]
    return {manifest.step: manifest.ledger["value"] for manifest in manifests}


def test_numbers_only_grow_and_the_last_one_holds(tmp_path: Path) -> None:
    first = Fence.take(tmp_path)
    assert (first.number, first.holds()) == (1, True)
    second = Fence.take(tmp_path)
    assert (second.number, second.holds(), first.holds()) == (2, True, False)
    second.check()
    with pytest.raises(TrainingError, match=TAKEN_OVER):
        first.check()


def test_a_folder_that_is_gone_is_nobodys(tmp_path: Path) -> None:
    fence = Fence.take(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert not fence.holds()
    with pytest.raises(TrainingError, match=r"run.dir=.*run was deleted or moved while this run was writing it; move"):
        fence.check(fresh=True)
    (tmp_path / "elsewhere").rename(tmp_path / "run")
    fence.check()


def test_many_starts_at_one_moment_get_one_number_each(tmp_path: Path) -> None:
    taken: list[int] = []
    together = threading.Barrier(16)

    def start() -> None:
        together.wait()
        taken.append(Fence.take(tmp_path).number)

    threads = [threading.Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 17))


def test_a_listing_that_is_old_does_not_give_a_number_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Fence.take(tmp_path)
    Fence.take(tmp_path)
    monkeypatch.setattr(module, "_newest", lambda run_dir, *, fresh: 0)
    assert Fence.take(tmp_path).number == 3


def test_a_job_of_slurm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = Fence.take(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "31")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    Fence.take(tmp_path)
    with pytest.raises(TrainingError, match=r"by a later start \(job 31, start 2, process"):
        older.check()


def paused_before(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    """Let something happen right before a function is called the first time, as if SIGSTOP had hit there."""
    function, done = getattr(owner, name), []

    def late(*args: Any, **kwargs: Any) -> Any:
        if not done:
            done.append(True)
            meanwhile()
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, late)


@pytest.mark.parametrize("place", ["write_part", "write_manifest", "sync_folder", "_discard"])
def test_a_start_that_wakes_up_anywhere_in_a_save_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "_discard":  # a bad checkpoint of the same step is in the way
        with closing(store_of(Fence.take(tmp_path))) as earlier:
            save(earlier, 2, 2.0)
        flip_bit(tmp_path / "checkpoints" / "step-00000002")
    with closing(store_of(Fence.take(tmp_path))) as older:
        save(older, 1, 1.0)

        def newer_runs() -> None:
            with closing(store_of(Fence.take(tmp_path))) as newer:
                save(newer, 2, 20.0)
                save(newer, 3, 30.0)

        paused_before(store_module, place, monkeypatch, newer_runs)
        for step in (2, 4):
            with pytest.raises(TrainingError, match=TAKEN_OVER):
                save(older, step, 2.0)
    assert values_on_disk(tmp_path) == {1: 1.0, 2: 20.0, 3: 30.0}


def test_a_start_that_was_paused_between_its_look_and_its_rename_finds_nothing_to_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = Fence.take(tmp_path)
    looks = 0
    check = Fence.check

    def look(fence: Fence, *, fresh: bool = False) -> None:
        nonlocal looks
        check(fence, fresh=fresh)
        looks += fence.number == 1
        if looks == 2:  # the first is at the begin of the save
            looks += 1
            Fence.take(tmp_path)

    monkeypatch.setattr(Fence, "check", look)
    with closing(store_of(older)) as store, pytest.raises(TrainingError, match=TAKEN_OVER):
        save(store, 5, 5.0)
    assert looks == 3
    assert list_checkpoints(tmp_path) == []
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_an_older_start_prunes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = Fence.take(tmp_path)
    with closing(store_of(older, keep=1)) as store:
        save(store, 1, 1.0)
        syncs = 0
        sync = store_module.sync_folder

        def take_over_after_rename(folder: Path) -> None:
            nonlocal syncs
            sync(folder)
            syncs += 1
            if syncs == 2:
                Fence.take(tmp_path)

        monkeypatch.setattr(store_module, "sync_folder", take_over_after_rename)
        with pytest.raises(TrainingError, match=TAKEN_OVER):
            save(store, 2, 2.0)
    assert values_on_disk(tmp_path) == {1: 1.0, 2: 2.0}  # it was there before the later start looked


def test_a_sweep_leaves_what_a_later_start_is_writing(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    names = [f".unfinished-step-00000007-{number:06d}" for number in (2, 3, 4)]
    for name in [*names, ".old-step-00000001-ab", "step-00000001"]:
        (folder / name).mkdir(parents=True)
    sweep(tmp_path, 3)
    assert sorted(path.name for path in folder.iterdir()) == [names[2], "step-00000001"]


def test_a_sweep_takes_a_folder_away_before_it_empties_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinished = tmp_path / "checkpoints" / ".unfinished-step-00000007-000001"
    unfinished.mkdir(parents=True)
    emptied: list[Path] = []
    monkeypatch.setattr(module.shutil, "rmtree", lambda path, **options: emptied.append(path))
    sweep(tmp_path, 2)
    assert not unfinished.exists()  # so who still writes it cannot give it a name when half of it is gone
    assert [path.name[:29] for path in emptied] == [".old-unfinished-step-00000007"]


def test_what_became_a_checkpoint_right_before_the_sweep_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    unfinished = folder / ".unfinished-step-00000007-000001"
    unfinished.mkdir(parents=True)

    def late(leftover: Path) -> Path:
        leftover.rename(folder / "step-00000007")  # by the start that wrote it
        return folder / ".old-7"

    monkeypatch.setattr(module, "discarded_dir", late)
    sweep(tmp_path, 2)
    assert list(folder.iterdir()) == [folder / "step-00000007"]


def test_what_cannot_be_emptied_keeps_its_name_from_sweep_to_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    discarded = tmp_path / "checkpoints" / ".old-step-00000007-12345678"
    discarded.mkdir(parents=True)
    monkeypatch.setattr(module.shutil, "rmtree", lambda path, **options: None)
    sweep(tmp_path, 2)
    assert list((tmp_path / "checkpoints").iterdir()) == [discarded]  # else it would grow longer than a name may be


def test_a_sweep_is_of_what_the_server_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    asked: list[Path] = []

    def seen_now(folder: Path) -> None:
        asked.append(folder)
        (folder / ".unfinished-step-00000007-000001").mkdir()  # by another machine, before

    monkeypatch.setattr(module, "refresh", seen_now)
    sweep(tmp_path, 2)
    assert asked == [folder]
    assert list(folder.iterdir()) == []


def test_a_mark_is_that_which_the_server_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seen_now(folder: Path) -> None:
        (folder / "000003").write_text("job 7\n")  # by another machine, before

    monkeypatch.setattr(module, "refresh", seen_now)
    assert Fence(tmp_path, 3).mark() is None  # here is no such folder
    (tmp_path / "fence").mkdir()
    assert Fence(tmp_path, 3).mark() == "job 7\n"


class Unseen(Fence):
    """A start whose number has not yet come to anybody's eyes."""

    def check(self, *, fresh: bool = False) -> None:
        pass


def test_a_checkpoint_that_another_process_put_there_is_not_replaced(tmp_path: Path) -> None:
    with closing(store_of(Fence.take(tmp_path))) as store:
        store.save(2, {"value": 2.0}, fragments(2.0))
        with closing(Store(Fence(tmp_path, 1), Alone(), keeping(None), **ABOUT)) as twin:
            twin._fence = Unseen(tmp_path, 10**6)
            save(twin, 2, 20.0)
        with pytest.raises(CheckpointError, match="checkpoint .*step-00000002 could not be written: .*older"):
            store.finish()
    assert values_on_disk(tmp_path) == {2: 20.0}


def test_an_older_start_changes_no_ledger(tmp_path: Path) -> None:
    with closing(store_of(Fence.take(tmp_path))) as older:
        save(older, 1, 1.0)
        folder = tmp_path / "checkpoints" / "step-00000001"
        older.amend(folder, value=2.0)
        assert values_on_disk(tmp_path) == {1: 2.0}
        Fence.take(tmp_path)
        with pytest.raises(TrainingError, match=TAKEN_OVER):
            older.amend(folder, value=3.0)
    assert values_on_disk(tmp_path) == {1: 2.0}


def test_a_look_that_has_to_be_right_is_at_what_the_server_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listdir, refresh, known = module.os.listdir, module.refresh, {}

    def remembered(folder: Path) -> list[str]:
        return known.setdefault(folder, listdir(folder))

    def reminded(folder: Path) -> None:
        known.pop(folder, None)
        refresh(folder)

    older = Fence.take(tmp_path)
    monkeypatch.setattr(module.os, "listdir", remembered)
    monkeypatch.setattr(module, "refresh", reminded)
    assert older.holds()
    (tmp_path / "fence" / "000002").touch()  # by another machine
    assert older.holds()
    with pytest.raises(TrainingError, match="was taken over by a later start"):
        older.check(fresh=True)
    assert not older.holds()
    known[tmp_path / "fence"] = ["000001"]
    with pytest.raises(TrainingError, match=r"was taken over by a later start \(which has just begun\)"):
        older.check(fresh=True)

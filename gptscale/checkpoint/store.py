"""Writing the checkpoints of a run: whole ones or none, beside training."""

import errno
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from gptscale.checkpoint.fence import Fence, discard, discarded_dir, remove, sweep, unfinished_dir
from gptscale.checkpoint.find import Ranks, verified
from gptscale.checkpoint.layout import (
    CheckpointManifest,
    FileRecord,
    checkpoints_dir,
    list_checkpoints,
    part_name,
    read_manifest,
    step_dir,
    write_manifest,
)
from gptscale.checkpoint.portable import PartRecord, merge_parts, pack_record, unpack_record, write_part
from gptscale.checkpoint.retention import doomed
from gptscale.checkpoint.snapshot import Snapshot
from gptscale.config.schema import CheckpointConfig
from gptscale.disk import sync_folder
from gptscale.errors import CheckpointError
from gptscale.runtime.fragments import Fragment

T = TypeVar("T")


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is on disk, and what it cost."""

    path: Path
    step: int
    bytes: int
    stall_s: float
    """How long training stood still for it."""
    durable_s: float
    """How long after it was asked for it was safe."""


@dataclass
class _Save:
    """A checkpoint on its way to the disk: every rank's part first, then rank 0's commit."""

    final: Path
    step: int
    ledger: dict[str, Any]
    work: Future[Any]
    """What this rank's thread is doing for it."""
    began: float
    unfinished: Path
    """Where it is written; another name for each start, since a lost node may still be at work on an older one."""
    bad: int | None = None
    """The inode of a bad checkpoint of the same step, which this one replaces."""
    stall_s: float = 0.0
    parts: list[tuple[int, bytes]] = field(default_factory=list)
    """Of each rank's part its bytes, and its record as the first alone reads it, in its thread."""


class Store:
    """Writes the checkpoints of a run folder. All ranks call its methods together, but for `writing` and `close`.

    `save` returns when the fragments were copied; from then on call `settle` between steps, whenever no rank is
    `writing`, until it returns what was saved. So an exchange of its own is needed only where something is done.
    """

    def __init__(
        self,
        fence: Fence,
        ranks: Ranks,
        rules: CheckpointConfig,
        *,
        names: Iterable[str] | None = None,
        **about: Any,
    ) -> None:
        """Fence is this start's number in the run folder.

        A checkpoint in which one of names is missing is refused; null takes the parameters that are given. About is
        what the manifest says beside ranges and ledger: config, data_fingerprint, versions.
        """
        self.run_dir = fence.run_dir
        self._names = None if names is None else frozenset(names)
        self._ranks = ranks
        self._rules = rules
        self._fence = fence
        self._about = about
        self._snapshot = Snapshot() if rules.background else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._save: _Save | None = None
        self._committed: Path | None = None
        """What this start has written last, and need not read again."""

    @property
    def writing(self) -> bool:
        """Whether this rank's thread still has something to do for the save in flight."""
        return self._save is not None and not self._save.work.done()

    def save(self, step: int, ledger: dict[str, Any], fragments: Iterable[Fragment]) -> None:
        """Begin the checkpoint of a step; the one before has to be finished. A good one of the same step stays.

        Raises CheckpointError if it cannot be begun.
        """
        assert self._save is None
        began = time.perf_counter()
        final = step_dir(self.run_dir, step)
        there = final.stat().st_ino if final.exists() else None
        if self._has_good(final):
            return
        save = _Save(final, step, ledger, Future(), began, unfinished_dir(final, self._fence.number), there)
        self._agree(save, lambda: self._on_first(lambda: self._make_place(save)))
        if self._snapshot is not None:
            fragments = self._snapshot.take(fragments)
        part = part_name(self._ranks.rank, self._ranks.world)
        save.work = self._thread.submit(_written, save.unfinished, part, fragments)
        self._save = save
        if self._snapshot is None:
            wait([save.work])
        save.stall_s = time.perf_counter() - began

    def settle(self) -> Saved | None:
        """Take the save in flight one stage on, waiting for this rank's thread; returns it when it is on disk.

        Raises CheckpointError on all ranks if a part or the commit failed on any.
        """
        save = self._save
        if save is None:
            return None
        result = self._agree(save, save.work.result)
        if not save.parts:
            save.parts = self._ranks.gather(result)
            save.work = self._thread.submit(self._on_first, lambda: self._commit(save))
            return None
        self._save, self._committed = None, save.final
        durable_s = (result or time.perf_counter()) - save.began
        size = sum(its for its, _ in save.parts)
        return Saved(save.final, save.step, size, save.stall_s, durable_s)

    def finish(self) -> Saved | None:
        """Wait until the save in flight is on disk; returns it, or None if there is none."""
        saved = None
        while self._save is not None:
            saved = self.settle()
        return saved

    def close(self) -> None:
        """Let this rank's thread end, without waiting for it; what was in flight and not finished does not count."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def has_checkpoint(self) -> bool:
        """Whether there is one to go back to, also one that is on its way. All ranks call this together."""
        seen = self._ranks.agree(lambda: list_checkpoints(self.run_dir))
        return self._ranks.gather(self._save is not None or bool(seen))[0]

    def amend(self, folder: Path, **changes: Any) -> None:
        """Change what a checkpoint's ledger says; its tensors stay. All ranks call this together."""

        def work() -> None:
            self._fence.check(fresh=True)
            manifest = read_manifest(folder)
            try:
                write_manifest(folder, replace(manifest, ledger={**manifest.ledger, **changes}))
            except OSError as error:
                raise _in_words(error, folder) from error

        self._ranks.agree(lambda: self._on_first(work))

    def check_room(self, parameters: int) -> None:
        """Raise CheckpointError if the disk has no room for one checkpoint of so many parameters.

        A checkpoint is the weights and Adam's two moments in float32.
        """
        needed, free = 12 * parameters, _free_bytes(self.run_dir)
        if free < needed:
            raise CheckpointError(
                f"run.dir={self.run_dir} has {free / 1e6:,.0f} MB free, but a checkpoint needs {needed / 1e6:,.0f} MB; "
                "free some space, lower checkpoint.keep, or choose a run.dir on a larger disk"
            )

    def _make_place(self, save: _Save) -> None:
        self._fence.check(fresh=True)
        sweep(self.run_dir, self._fence.number)
        save.unfinished.mkdir(parents=True)

    def _commit(self, save: _Save) -> float:
        """Give the checkpoint its name; returns when that was safe, on the clock of `perf_counter`."""
        files: dict[str, FileRecord] = {}

        def unpacked() -> Iterator[PartRecord]:  # one at a time: those of a thousand ranks take half a gigabyte
            for _, packed in save.parts:
                part = unpack_record(packed)
                files[part.file] = part.record
                yield part

        parameters = merge_parts(unpacked())
        if self._names is not None and (wrong := sorted(self._names ^ parameters.keys())):
            raise CheckpointError(
                f"{wrong[0]} was saved by no rank, or is no parameter of the model ({len(wrong)} such names); "
                "nothing was saved"
            )
        manifest = CheckpointManifest(
            step=save.step,
            ledger=save.ledger,
            engine=self._ranks.name,
            world=self._ranks.world,
            files=files,
            parameters=parameters,
            **self._about,
        )
        write_manifest(save.unfinished, manifest)
        sync_folder(save.unfinished)
        self._fence.check(fresh=True)
        if save.bad is not None:
            _discard(save.final, save.bad)
        save.unfinished.rename(save.final)
        sync_folder(save.final.parent)
        safe = time.perf_counter()
        self.prune((save.ledger.get("best") or {}).get("step"))
        return safe

    def prune(self, best_step: int | None) -> None:
        """Delete what need not stay, when the newest is known to be good; rank 0 alone does.

        Raises TakenOverError if a later start has begun. What cannot be deleted is no reason to end a run.
        """
        self._fence.check(fresh=True)
        folders = {int(path.name.removeprefix("step-")): path for path in list_checkpoints(self.run_dir)}
        for step in doomed(self._rules, folders, best_step):
            discard(folders[step])
        sweep(self.run_dir, self._fence.number)

    def _has_good(self, path: Path) -> bool:
        """Whether a step was saved before; so after a resume from a newer, bad checkpoint it is written anew."""
        if not any(self._ranks.gather(path.exists())):
            return False
        if path == self._committed:
            return True
        try:
            self._ranks.agree(lambda: verified(path, self._ranks.rank, self._ranks.world))
        except CheckpointError:
            return False
        return True

    def _on_first(self, work: Callable[[], T]) -> T | None:
        return work() if self._ranks.rank == 0 else None

    def _agree(self, save: _Save, work: Callable[[], T]) -> T:
        """Do a part of a save on all ranks; the disk's errors become ours before the ranks share them."""

        def told() -> T:
            try:
                return work()
            except OSError as error:
                with suppress(OSError):  # a disk that cannot be written cannot tell of a later start either
                    self._fence.check(fresh=True)  # which takes away what this one was writing
                raise _in_words(error, save.final) from error

        try:
            return self._ranks.agree(told)
        except BaseException:
            self._save = None
            with suppress(OSError):  # after a Ctrl-C a commit may be at work, which is to find all of it or nothing
                self._on_first(lambda: remove(save.unfinished))
            raise


def _written(folder: Path, file: str, fragments: Iterable[Fragment]) -> tuple[int, bytes]:
    part = write_part(folder, file, fragments)
    return part.record.bytes, pack_record(part)


def _discard(final: Path, inode: int) -> None:
    """Take a bad checkpoint's name away from it; if another start has meanwhile replaced it, put that one back."""
    aside = discarded_dir(final)
    final.rename(aside)
    if aside.stat().st_ino != inode:
        aside.rename(final)
        raise FileExistsError(f"{final} was written by another process")


def _free_bytes(run_dir: Path) -> int:
    """What is free where checkpoints go, which may be a link to another disk; before the first there is no folder."""
    folder = checkpoints_dir(run_dir)
    return shutil.disk_usage(folder if folder.exists() else run_dir).free


def _in_words(error: OSError, final: Path) -> CheckpointError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = f"{_free_bytes(final.parent.parent) / 1e6:,.0f} MB are free"
        return CheckpointError(
            f"no room for checkpoint {final}: {free if error.errno == errno.ENOSPC else error.strerror}; "
            "free some space, lower checkpoint.keep, or move run.dir to a larger disk; older checkpoints are whole"
        )
    return CheckpointError(f"checkpoint {final} could not be written: {error}; older checkpoints are whole")

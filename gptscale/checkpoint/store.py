"""The checkpoints of one run: write whole ones, find the newest good one, drop old ones."""

import errno
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gptscale.checkpoint.layout import (
    CheckpointManifest,
    checkpoints_dir,
    list_checkpoints,
    part_name,
    read_manifest,
    step_dir,
    verify_file,
    write_manifest,
)
from gptscale.checkpoint.portable import PartRecord, check_names, merge_parts, read_fragments, write_part
from gptscale.disk import sync_folder
from gptscale.errors import CheckpointError
from gptscale.runtime.fragments import Fragment

T = TypeVar("T")


class Ranks(Protocol):
    """What the store needs to know of the other ranks."""

    name: str
    rank: int
    world: int

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        ...

    def agree(self, work: Callable[[], T]) -> T:
        """Do work on this rank; if it failed on any, raise the same error on all."""
        ...


@dataclass(frozen=True)
class Store:
    """Writes and reads the checkpoints of a run folder. All ranks call its methods together."""

    run_dir: Path
    ranks: Ranks
    keep: int | None
    config: dict[str, Any]
    data_fingerprint: str
    say: Callable[[str], None]

    def save(self, step: int, ledger: dict[str, Any], fragments: Iterable[Fragment]) -> Path:
        """Write the checkpoint of a step; it is there when this returns, whole, or an error was raised."""
        final = step_dir(self.run_dir, step)
        if self._has_good(final):
            return final
        unfinished = final.with_name(f".unfinished-{final.name}")
        part = part_name(self.ranks.rank, self.ranks.world)
        try:
            self._agree(final, lambda: self._on_first(lambda: _make_empty(unfinished)))
            record = self._agree(final, lambda: write_part(unfinished, part, fragments))
            parts = self.ranks.gather(record)
            self._agree(final, lambda: self._on_first(lambda: self._commit(unfinished, final, step, ledger, parts)))
        except CheckpointError:
            self._on_first(lambda: shutil.rmtree(unfinished, ignore_errors=True))
            raise
        return final

    def newest(self) -> tuple[Path, CheckpointManifest] | None:
        """The newest checkpoint that passes every check, or None if the run has none.

        Newer ones that do not are said and set aside as bad-step-*. Raises CheckpointError if the run
        has checkpoints but none is good: starting from nothing would hide the loss.
        """
        problems: list[str] = []
        bad: list[Path] = []
        for path in list_checkpoints(self.run_dir):
            try:
                manifest = self.ranks.agree(lambda path=path: self._verified(path))  # type: ignore[misc]
            except CheckpointError as error:
                problems.append(str(error))
                bad.append(path)
                continue
            self._on_first(lambda: self._set_aside(bad, problems))
            return path, manifest
        if problems:
            raise CheckpointError(
                f"no checkpoint of {self.run_dir} can be used: {problems[0]}. "
                f"To start again from nothing, move {checkpoints_dir(self.run_dir)} away"
            )
        return None

    def load(self, path: Path, manifest: CheckpointManifest, fragments: list[Fragment], names: list[str]) -> None:
        """Fill the ranges that this rank holds; names are all of the model's parameters."""
        if manifest.data_fingerprint != self.data_fingerprint:
            where = f"data.dir={folder}" if (folder := self.config["data"].get("dir")) else "data.mixture"
            raise CheckpointError(
                f"{path} was trained on data {manifest.data_fingerprint[:12]}, but "
                f"{where} holds {self.data_fingerprint[:12]}; "
                "point data.dir at the first corpus, or start a new run in another run.dir"
            )
        check_names(path, manifest, names)
        self.ranks.agree(lambda: read_fragments(path, manifest, fragments))

    def check_room(self, parameters: int) -> None:
        """Raise CheckpointError if the disk has no room for one checkpoint of so many parameters.

        A checkpoint is the weights and Adam's two moments in float32.
        """
        needed, free = 12 * parameters, shutil.disk_usage(self.run_dir).free
        if free < needed:
            raise CheckpointError(
                f"run.dir={self.run_dir} has {free / 1e6:,.0f} MB free, but a checkpoint needs {needed / 1e6:,.0f} MB; "
                "free some space or choose a run.dir on a larger disk"
            )

    def _commit(
        self, unfinished: Path, final: Path, step: int, ledger: dict[str, Any], parts: list[PartRecord]
    ) -> None:
        manifest = CheckpointManifest(
            step=step,
            ledger=ledger,
            config=self.config,
            data_fingerprint=self.data_fingerprint,
            engine=self.ranks.name,
            world=self.ranks.world,
            files={part.file: part.record for part in parts},
            parameters=merge_parts(parts),
        )
        write_manifest(unfinished, manifest)
        sync_folder(unfinished)
        if final.exists():  # a bad one of the same step, which _has_good has refused
            shutil.rmtree(final)
        unfinished.rename(final)
        sync_folder(final.parent)
        self._prune()

    def _set_aside(self, folders: list[Path], problems: list[str]) -> None:
        """Take bad checkpoints out of the row, so that they neither count as kept nor are tried again."""
        for folder, problem in zip(folders, problems, strict=True):
            aside = folder.with_name(f"bad-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            self.say(f"WARNING: passing over a bad checkpoint, now {aside}: {problem}")

    def _prune(self) -> None:
        """Delete the oldest beyond `keep`, after the new one is there, and what interrupted saves left."""
        for path in list_checkpoints(self.run_dir)[self.keep :] if self.keep else []:
            doomed = path.with_name(f".old-{path.name}")
            path.rename(doomed)  # so that a crash in the middle of deleting leaves nothing that looks whole
            shutil.rmtree(doomed)
        for leftover in checkpoints_dir(self.run_dir).glob(".*-step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _verified(self, path: Path) -> CheckpointManifest:
        """Read the manifest and check this rank's share of the files."""
        manifest = read_manifest(path)
        for name in sorted(manifest.files)[self.ranks.rank :: self.ranks.world]:
            verify_file(path, name, manifest.files[name])
        return manifest

    def _has_good(self, path: Path) -> bool:
        """Whether a step was saved before; so after a resume from a newer, bad checkpoint it is written anew."""
        if not any(self.ranks.gather(path.exists())):
            return False
        try:
            self.ranks.agree(lambda: self._verified(path))
        except CheckpointError:
            return False
        return True

    def _on_first(self, work: Callable[[], None]) -> None:
        if self.ranks.rank == 0:
            work()

    def _agree(self, final: Path, work: Callable[[], T]) -> T:
        """Do a part of a save on all ranks; the disk's errors become ours before the ranks share them."""

        def told() -> T:
            try:
                return work()
            except OSError as error:
                raise _in_words(error, final) from error

        return self.ranks.agree(told)


def verified_manifest(path: Path) -> CheckpointManifest:
    """Read one checkpoint's manifest and check all of its files, in one process."""
    manifest = read_manifest(path)
    for name, record in manifest.files.items():
        verify_file(path, name, record)
    return manifest


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _in_words(error: OSError, final: Path) -> CheckpointError:
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(final.parent).free
        return CheckpointError(
            f"no room for checkpoint {final}: {free / 1e6:,.0f} MB are free; free some space, lower "
            "checkpoint.keep, or move run.dir to a larger disk; older checkpoints are whole"
        )
    return CheckpointError(f"checkpoint {final} could not be written: {error}; older checkpoints are whole")

"""The newest good checkpoint of a run, agreed by all ranks, and its tensors."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

from gptscale.checkpoint.fence import refresh
from gptscale.checkpoint.layout import (
    CheckpointManifest,
    checkpoints_dir,
    list_checkpoints,
    read_manifest,
    verify_file,
)
from gptscale.checkpoint.portable import check_names, read_fragments, tiling_problems
from gptscale.errors import CheckpointAccessError, CheckpointError
from gptscale.runtime.fragments import Fragment

T = TypeVar("T")


class Ranks(Protocol):
    """What checkpoints need to know of the other ranks."""

    name: str
    rank: int
    world: int

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        ...

    def agree(self, work: Callable[[], T]) -> T:
        """Do work on this rank; if it failed on any, raise the same error on all."""
        ...


def newest_good(
    run_dir: Path, ranks: Ranks, say: Callable[[str], None], *, strict: bool = False
) -> tuple[Path, CheckpointManifest] | None:
    """The newest checkpoint that passes every check, or None if the run has none. All ranks call this together.

    Newer ones that do not pass are said and set aside as bad-step-*; with strict they are an error. One that cannot
    be reached is an error too: it may well be good. Raises CheckpointError if the run has checkpoints but none is
    good: starting from nothing would hide the loss.
    """
    bad: dict[Path, str] = {}
    with suppress(OSError):  # there is none yet, or it may not be written, which is said elsewhere
        refresh(checkpoints_dir(run_dir))
    seen = ranks.agree(lambda: list_checkpoints(run_dir))
    found = ranks.gather(seen)[0]  # a shared disk may show other ranks another list
    for path in found:
        try:
            manifest = ranks.agree(lambda path=path: verified(path, ranks.rank, ranks.world))  # type: ignore[misc]
        except CheckpointAccessError:
            raise
        except CheckpointError as error:
            if strict:
                raise CheckpointError(
                    f"resume.strict refuses to pass over a bad checkpoint: {error}. "
                    f"Mend {path}, move it away, or set resume.strict=false to go on from the one before"
                ) from None
            bad[path] = str(error)
            continue
        ranks.agree(lambda: _set_aside(bad, say) if ranks.rank == 0 else None)
        ledger = ranks.gather(manifest.ledger)[0]  # which may have been amended since another rank's system read it
        return path, replace(manifest, ledger=ledger)
    if bad:
        raise CheckpointError(
            f"no checkpoint of {run_dir} can be used: {bad[found[0]]}. "
            f"To start again from nothing, move {checkpoints_dir(run_dir)} away"
        )
    return None


def load_fragments(
    path: Path, manifest: CheckpointManifest, ranks: Ranks, fragments: list[Fragment], names: list[str]
) -> None:
    """Fill the ranges that this rank asks for; names are all of the model's parameters. All ranks call this."""
    check_names(path, manifest, names)
    ranks.agree(lambda: read_fragments(path, manifest, fragments))


def verified(path: Path, rank: int = 0, world: int = 1) -> CheckpointManifest:
    """Read a checkpoint's manifest and check a rank's share of its files.

    No parameter has a hole, where whatever memory held would be taken for weights.
    """
    manifest = read_manifest(path)
    if problems := tiling_problems(path, manifest):
        says = "write it as gptscale/checkpoint/FORMAT.md says, or use another checkpoint"
        raise CheckpointError(f"{problems[0]}; {says}")
    for name in sorted(manifest.files)[rank::world]:
        verify_file(path, name, manifest.files[name])
    return manifest


def _set_aside(bad: dict[Path, str], say: Callable[[str], None]) -> None:
    """Take bad checkpoints out of the row, so that they neither count as kept nor are tried again."""
    for folder, problem in bad.items():
        aside = folder.with_name(f"bad-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            folder.rename(aside)
        except OSError as error:
            raise CheckpointError(
                f"{problem}. {folder} cannot be renamed to pass it over: {error.strerror}; move it away"
            ) from None
        say(f"WARNING: passing over a bad checkpoint, now {aside}: {problem}")

"""A checkpoint on disk: a folder of parts with one manifest, which is written last.

    checkpoints/step-00001000/
        part-00000-of-00002.safetensors     keys kind/name@start, flat float32
        part-00001-of-00002.safetensors
        manifest.json                       ledger, config, hashes, which range lies where

A folder that is named step-* is whole: it was renamed to that name after everything was on disk.
"""

import errno
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gptscale.data.manifest import hash_json
from gptscale.disk import fast_hash_file, write_whole
from gptscale.errors import CheckpointAccessError, CheckpointError

FORMAT = "gptscale-checkpoint-"
VERSION = 2
MANIFEST = "manifest.json"
_MEND_ACCESS = "mend its permissions or the disk, or use another checkpoint"
_STEP_FOLDER = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Range:
    """Where elements start to start + numel of a flattened parameter lie."""

    start: int
    numel: int
    file: str


@dataclass(frozen=True)
class ParameterRecord:
    """One parameter in a checkpoint."""

    shape: list[int]
    kinds: list[str]
    """`weight` and the per-element optimizer state."""
    scalars: dict[str, float]
    ranges: list[Range]


@dataclass(frozen=True)
class FileRecord:
    """One part as it has to be on disk."""

    bytes: int
    xxh3: str
    """XXH3-128 in hex."""


@dataclass(frozen=True)
class CheckpointManifest:
    """All of a checkpoint but its tensors."""

    step: int
    ledger: dict[str, Any]
    config: dict[str, Any]
    data_fingerprint: str
    engine: str
    world: int
    files: dict[str, FileRecord]
    parameters: dict[str, ParameterRecord]
    versions: dict[str, str | None] = field(default_factory=dict)
    """The packages that it was written with."""
    format: str = field(default=f"{FORMAT}{VERSION}")


_FIELDS = TypeAdapter(CheckpointManifest)


def checkpoints_dir(run_dir: Path) -> Path:
    """The folder of a run that holds its checkpoints."""
    return run_dir / "checkpoints"


def step_dir(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return checkpoints_dir(run_dir) / f"step-{step:08d}"


def part_name(rank: int, world: int) -> str:
    """The file that a rank writes."""
    return f"part-{rank:05d}-of-{world:05d}.safetensors"


def tensor_key(kind: str, name: str, start: int) -> str:
    """The name of a range inside a part."""
    return f"{kind}/{name}@{start}"


def is_step_folder(folder: Path) -> bool:
    """Whether a folder has the name of a checkpoint."""
    return _STEP_FOLDER.fullmatch(folder.name) is not None


def list_checkpoints(run_dir: Path) -> list[Path]:
    """A run's checkpoint folders, newest first. Raises CheckpointError if nobody can say which there are."""
    folder = checkpoints_dir(run_dir)
    try:
        names = os.listdir(folder)  # glob would take a folder that cannot be read for an empty one
    except (FileNotFoundError, NotADirectoryError):
        if folder.exists() and not folder.is_dir():  # which another rank may have made meanwhile
            raise CheckpointError(f"{folder} is no folder, so it holds no checkpoints; move it away") from None
        if folder.is_symlink():  # to a disk that is not there: starting from nothing would hide the loss
            raise CheckpointError(
                f"{folder} is a link to {os.readlink(folder)}, which is not there; mount its disk, make that folder, "
                "or delete the link to start from nothing"
            ) from None
        return []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}; {_MEND_ACCESS}") from None
    steps = [(int(match[1]), name) for name in names if (match := _STEP_FOLDER.fullmatch(name))]
    return [folder / name for _, name in sorted(steps, reverse=True)]


def write_manifest(folder: Path, manifest: CheckpointManifest) -> None:
    """Write the manifest with its own digest, and wait until it is on disk."""
    body = _FIELDS.dump_python(manifest)
    text = json.dumps({**body, "digest": hash_json(body)}, indent=1)
    write_whole(folder / MANIFEST, (text + "\n").encode())


def read_manifest(folder: Path) -> CheckpointManifest:
    """Read and check a manifest; raises CheckpointError if it is missing or not as it was written."""
    path = folder / MANIFEST
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{folder} is no checkpoint: it has no {MANIFEST}") from None
    except OSError as error:
        raise _refused(path, error) from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} cannot be read; restore it from a copy, or use an older checkpoint") from None
    _check_format(folder, body.get("format") if isinstance(body, dict) else None)
    digest = body.pop("digest", None)
    if digest != hash_json(body):
        raise CheckpointError(
            f"{path} was changed after it was written; restore it from a copy, or use an older checkpoint"
        )
    manifest = _parse(path, body)
    _check_step(folder, manifest.step)
    return manifest


def verify_file(folder: Path, name: str, record: FileRecord) -> None:
    """Compare one part with its record; raises CheckpointError on the first difference."""
    path = folder / name
    try:
        if (found := path.stat().st_size) != record.bytes:
            raise CheckpointError(f"{path} has {found} bytes instead of {record.bytes}: it was cut short or changed")
        found_hash = fast_hash_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; restore it from a copy, or use an older checkpoint") from None
    except OSError as error:
        raise _refused(path, error) from None
    if found_hash != record.xxh3:
        raise CheckpointError(f"{path} is damaged: its hash is not the one in {MANIFEST}")


def _refused(path: Path, error: OSError) -> CheckpointError:
    """What to raise for a file that cannot be read; only a disk that fails says that the file itself is bad."""
    kind = CheckpointError if error.errno == errno.EIO else CheckpointAccessError
    return kind(f"{path} cannot be read: {error.strerror}; {_MEND_ACCESS}")


def _check_format(folder: Path, found: Any) -> None:
    version = str(found).removeprefix(FORMAT)
    if version == str(VERSION):
        return
    if str(found).startswith(FORMAT) and version.isdigit():
        older = int(version) < VERSION
        raise CheckpointError(
            f"{folder} is a checkpoint of format {version}, and this gptscale reads {VERSION}; use "
            + ("the gptscale that wrote it" if older else "a newer gptscale")
        )
    raise CheckpointError(f"{folder} is no checkpoint (its format is {found!r}); give a step-* folder")


def _check_step(folder: Path, step: int) -> None:
    """Refuse a folder that somebody has renamed: under a later step's name an old one would win for ever."""
    match = _STEP_FOLDER.fullmatch(folder.name)
    if match and int(match[1]) != step:
        raise CheckpointError(f"{folder} holds step {step}, so somebody has renamed it; name it step-{step:08d} again")


def _parse(path: Path, body: dict[str, Any]) -> CheckpointManifest:
    """What another program may have written, with a digest that is right."""
    try:
        return _FIELDS.validate_python(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(
            f"{path} is not what format {VERSION} asks for ({where}: {first['msg']}); write it as "
            "gptscale/checkpoint/FORMAT.md says, or use another checkpoint"
        ) from None

"""Every byte of a checkpoint against its manifest.

Files are read in threads: hashing lets go of the interpreter's lock, so all cores take part.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gptscale.checkpoint.layout import (
    MANIFEST,
    CheckpointManifest,
    is_step_folder,
    list_checkpoints,
    read_manifest,
    tensor_key,
    verify_file,
)
from gptscale.checkpoint.portable import tiling_problems
from gptscale.data.workers import cores
from gptscale.errors import CheckpointError
from gptscale.weights.files import TensorReader, open_tensors


@dataclass(frozen=True)
class Verdict:
    """What was found in one checkpoint folder."""

    folder: Path
    manifest: CheckpointManifest | None
    """None where it cannot be trusted."""
    problems: list[str]
    """One line each, the manifest's first; empty for a good checkpoint."""


def checkpoints_at(path: Path) -> list[Path]:
    """The checkpoint that a path is, or those of the run that it is, newest first; none for anything else."""
    if is_step_folder(path) or any(path.glob("part-*.safetensors")):
        return [path]
    return list_checkpoints(path)


def verify_checkpoints(folders: Iterable[Path], *, finite: bool = False) -> Iterator[Verdict]:
    """Check checkpoints, all their files side by side; finite also looks at every value.

    Verdicts come in the order of the folders, each as soon as it and those before it are known.
    """
    with ThreadPoolExecutor(cores(), thread_name_prefix="verify") as pool:
        for folder, (manifest, problems, files) in [(folder, _begun(pool, folder, finite)) for folder in folders]:
            yield Verdict(folder, manifest, problems + [problem for file in files for problem in file.result()])


def _begun(
    pool: ThreadPoolExecutor, folder: Path, finite: bool
) -> tuple[CheckpointManifest | None, list[str], list[Future[list[str]]]]:
    """A checkpoint's manifest with what is wrong with it, and the checks of its files, which are under way."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return None, [str(error)], []
    expected = _expected_tensors(manifest)
    strays = [
        f"{folder / MANIFEST} places tensors in {file}, which is none of its files"
        for file in expected.keys() - manifest.files
    ]
    files = [
        pool.submit(_file_problems, folder, file, manifest, expected.get(file, {}), finite)
        for file in sorted(manifest.files)
    ]
    return manifest, tiling_problems(folder, manifest) + strays, files


def _expected_tensors(manifest: CheckpointManifest) -> dict[str, dict[str, int]]:
    """For each file the keys that belong into it, with their numbers of elements."""
    expected: dict[str, dict[str, int]] = {}
    for name, record in manifest.parameters.items():
        for r in record.ranges:
            for kind in record.kinds:
                expected.setdefault(r.file, {})[tensor_key(kind, name, r.start)] = r.numel
    return expected


def _file_problems(
    folder: Path, file: str, manifest: CheckpointManifest, expected: dict[str, int], finite: bool
) -> list[str]:
    """A damaged file is one problem; what a whole one holds is looked at only then."""
    path = folder / file
    try:
        verify_file(folder, file, manifest.files[file])
        with open_tensors(path) as reader:
            problems = _content_problems(path, reader, expected)
            if finite and not problems:
                problems = [
                    f"{path}: {key} holds a value that is not finite; go back to an older checkpoint"
                    for key in expected
                    if not all(bool(piece.isfinite().all()) for piece in reader.pieces(key))
                ]
    except (CheckpointError, OSError) as error:
        return [str(error)]
    return problems


def _content_problems(path: Path, reader: TensorReader, expected: dict[str, int]) -> list[str]:
    found = {key: reader.shape(key) for key in reader.keys()}  # noqa: SIM118  (a reader is no dict)
    lacking = [f"{path} lacks {key}, which {MANIFEST} places there" for key in expected.keys() - found]
    unknown = [f"{path} holds {key}, of which {MANIFEST} does not know" for key in found.keys() - expected]
    wrong = [
        f"{path}: {key} has the shape {list(found[key])}, but {MANIFEST} says {[numel]}"
        for key, numel in expected.items()
        if found.get(key, (numel,)) != (numel,)
    ]
    types = {key: reader.dtype(key) for key in found}
    wrong += [f"{path}: {key} is of type {types[key]}, not F32" for key in expected if types.get(key, "F32") != "F32"]
    return sorted(lacking + unknown + wrong)

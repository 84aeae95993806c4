"""Between fragments in memory and ranges in files, for any cut of the parameters on either side."""

import json
import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter
from torch import Tensor

from gptscale.checkpoint.layout import (
    MANIFEST,
    CheckpointManifest,
    FileRecord,
    ParameterRecord,
    Range,
    tensor_key,
)
from gptscale.errors import CheckpointError
from gptscale.runtime.fragments import Fragment
from gptscale.weights.files import open_tensors, write_tensors


@dataclass(frozen=True)
class PartRecord:
    """What a rank tells rank 0 about the part it has written."""

    file: str
    record: FileRecord
    parameters: dict[str, ParameterRecord]


_PART = TypeAdapter(PartRecord)


def write_part(folder: Path, file: str, fragments: Iterable[Fragment]) -> PartRecord:
    """Write a rank's fragments into one part; returns when it is on disk and hashed."""
    tensors: dict[str, Tensor] = {}
    parameters = {}
    for fragment in fragments:
        for kind, view in fragment.tensors.items():
            tensors[tensor_key(kind, fragment.name, fragment.start)] = view
        scalars = {kind: float(value) for kind, value in fragment.scalars.items()}
        where = Range(fragment.start, fragment.numel, file)
        parameters[fragment.name] = ParameterRecord(list(fragment.shape), list(fragment.tensors), scalars, [where])
    return PartRecord(file, FileRecord(*write_tensors(folder / file, tensors)), parameters)


def pack_record(part: PartRecord) -> bytes:
    """A record in few bytes: the ranks exchange it, and a thousand of them hold a range of every parameter each."""
    return zlib.compress(json.dumps(_PART.dump_python(part)).encode())  # pydantic has no word for inf


def unpack_record(packed: bytes) -> PartRecord:
    """What `pack_record` was given."""
    return _PART.validate_json(zlib.decompress(packed))


def merge_parts(parts: Iterable[PartRecord]) -> dict[str, ParameterRecord]:
    """Join the ranks' records; raises CheckpointError unless each parameter is covered exactly once."""
    ranges: dict[str, list[Range]] = defaultdict(list)
    records: dict[str, ParameterRecord] = {}
    for part in parts:
        for name, record in part.parameters.items():
            records[name] = record
            ranges[name] += record.ranges
    merged = {}
    for name, record in records.items():
        ordered = sorted(ranges[name], key=lambda r: r.start)
        merged[name] = ParameterRecord(record.shape, record.kinds, record.scalars, ordered)
        if problem := _tiling_problem(name, merged[name]):
            raise CheckpointError(problem)
    return merged


def read_fragments(folder: Path, manifest: CheckpointManifest, fragments: Iterable[Fragment]) -> None:
    """Fill live fragments from a checkpoint, reading only the bytes that they need.

    Raises CheckpointError if the model has other parameters or shapes than the checkpoint.
    """
    wanted = list(fragments)
    by_file: dict[str, list[tuple[Fragment, Range]]] = defaultdict(list)
    for fragment in wanted:
        record = _matching_record(folder, manifest.parameters, fragment)
        for r in record.ranges:
            if r.start < fragment.start + fragment.numel and fragment.start < r.start + r.numel:
                by_file[r.file].append((fragment, r))
        for kind, scalar in fragment.scalars.items():
            scalar.fill_(record.scalars[kind])
    for file, pairs in by_file.items():
        with open_tensors(folder / file) as reader:
            for fragment, r in pairs:
                low = max(fragment.start, r.start)
                high = min(fragment.start + fragment.numel, r.start + r.numel)
                for kind, view in fragment.tensors.items():
                    place = view[low - fragment.start : high - fragment.start]
                    reader.read_into(place, tensor_key(kind, fragment.name, r.start), low - r.start)


def check_names(folder: Path, manifest: CheckpointManifest, names: Iterable[str]) -> None:
    """Raise CheckpointError unless the model and the checkpoint have the same parameters."""
    model, saved = set(names), set(manifest.parameters)
    if model != saved:
        only = sorted(model ^ saved)
        whose = "the model" if only[0] in model else "the checkpoint"
        raise CheckpointError(
            f"{folder} does not fit model: {only[0]} is only in {whose} ({len(only)} such parameters); "
            "use the model section that it was trained with, or another run.dir"
        )


def tiling_problems(folder: Path, manifest: CheckpointManifest) -> list[str]:
    """A line for each parameter whose ranges a manifest gives with a hole or an overlap."""
    found = (_tiling_problem(name, record) for name, record in manifest.parameters.items())
    return [f"{folder / MANIFEST}: {problem}" for problem in found if problem]


def _tiling_problem(name: str, record: ParameterRecord) -> str | None:
    """What keeps a parameter's ranges from covering it exactly once."""
    numel, covered = math.prod(record.shape), 0
    for r in sorted(record.ranges, key=lambda r: r.start):
        if r.start != covered:
            return f"{name}: elements {min(r.start, covered)} on were saved twice or not at all"
        covered += r.numel
    return None if covered == numel else f"{name}: {covered} of {numel} elements were saved"


def _matching_record(folder: Path, records: Mapping[str, ParameterRecord], fragment: Fragment) -> ParameterRecord:
    record = records[fragment.name]
    if tuple(record.shape) != fragment.shape:
        raise CheckpointError(
            f"{folder} does not fit model: {fragment.name} has shape {record.shape} there and "
            f"{list(fragment.shape)} here; use the model section that it was trained with, or another run.dir"
        )
    if missing := set(fragment.tensors) - set(record.kinds):
        raise CheckpointError(
            f"{folder} holds {record.kinds} for {fragment.name}, but the optimizer needs {sorted(missing)}; "
            "use the optim section that it was trained with, or another run.dir"
        )
    return record

"""What is in a checkpoint: tensors with their norms, the ledger, files, and the settings it was trained with."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptscale.checkpoint.layout import CheckpointManifest, FileRecord, tensor_key
from gptscale.checkpoint.model import find_checkpoint, is_gone
from gptscale.config.load import parse_config, settings
from gptscale.weights.files import open_tensors


@dataclass(frozen=True)
class TensorSummary:
    """One parameter with its optimizer state."""

    name: str
    shape: list[int]
    ranges: int
    """Pieces it was written in."""
    norms: dict[str, float]
    """L2 norm of the weight and of each kind of optimizer state."""
    scalars: dict[str, float]


@dataclass(frozen=True)
class Inspection:
    """A checkpoint as a reader wants to see it."""

    folder: str
    step: int
    engine: str
    world: int
    data_fingerprint: str
    ledger: dict[str, Any]
    settings: dict[str, Any]
    """The config where it is not the default, by section.key."""
    files: dict[str, FileRecord]
    tensors: list[TensorSummary]

    @property
    def elements(self) -> int:
        """Numbers in all weights."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


def inspect_checkpoint(path: Path) -> Inspection:
    """Look into a checkpoint, or into a run's newest good one, whose files are checked first.

    Reads piece by piece; raises CheckpointError for what cannot be trusted.
    """
    folder, manifest = find_checkpoint(path)
    try:
        norms = _norms(folder, manifest)
    except FileNotFoundError:
        if not is_gone(folder):
            raise
        return inspect_checkpoint(path)
    return Inspection(
        folder=str(folder),
        step=manifest.step,
        engine=manifest.engine,
        world=manifest.world,
        data_fingerprint=manifest.data_fingerprint,
        ledger=manifest.ledger,
        settings=settings(parse_config(manifest.config, str(folder)), changed=True),
        files=manifest.files,
        tensors=[
            TensorSummary(name, record.shape, len(record.ranges), norms[name], record.scalars)
            for name, record in manifest.parameters.items()
        ],
    )


def _norms(folder: Path, manifest: CheckpointManifest) -> dict[str, dict[str, float]]:
    """For each parameter the norm of each kind: squares are summed in float64, file after file."""
    squares = {name: dict.fromkeys(record.kinds, 0.0) for name, record in manifest.parameters.items()}
    for file in manifest.files:
        with open_tensors(folder / file) as reader:
            for name, record in manifest.parameters.items():
                for start in [r.start for r in record.ranges if r.file == file]:
                    for kind in record.kinds:
                        pieces = reader.pieces(tensor_key(kind, name, start))
                        norms = (float(torch.linalg.vector_norm(p, dtype=torch.float64)) for p in pieces)
                        squares[name][kind] += math.fsum(norm**2 for norm in norms)
    return {name: {kind: math.sqrt(square) for kind, square in of_one.items()} for name, of_one in squares.items()}

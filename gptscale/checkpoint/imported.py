"""Imported weights as a checkpoint of step 0: what every verb that reads a checkpoint can read."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from torch import Tensor

from gptscale.checkpoint.layout import CheckpointManifest, part_name, write_manifest
from gptscale.checkpoint.portable import merge_parts, write_part
from gptscale.config.schema import Config
from gptscale.model.gpt import unfilled_model
from gptscale.runtime.fragments import Fragment
from gptscale.weights.files import pack

IMPORTED = "import"
"""What such a checkpoint says instead of the engine that wrote it."""

PART_BYTES = 1_000_000_000
"""Parameters are held in memory until their part is full."""


def write_imported(folder: Path, cfg: Config, parameters: Iterator[tuple[str, Tensor]]) -> None:
    """Write all parameters of a model, in its order, as a checkpoint that has weights and no optimizer state."""
    sizes = {name: 4 * p.numel() for name, p in unfilled_model(cfg.model).named_parameters()}
    groups = pack(sizes, PART_BYTES)
    parts = []
    for number, group in enumerate(groups):
        fragments = (
            Fragment(n, tuple(t.shape), 0, {"weight": t.view(-1)}, {}) for n, t in islice(parameters, len(group))
        )
        parts.append(write_part(folder, part_name(number, len(groups)), fragments))
    manifest = CheckpointManifest(
        step=0,
        ledger={},
        config=cfg.model_dump(mode="json"),
        data_fingerprint="",
        engine=IMPORTED,
        world=len(groups),
        files={part.file: part.record for part in parts},
        parameters=merge_parts(parts),
    )
    write_manifest(folder, manifest)

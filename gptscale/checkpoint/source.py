"""Checkpoints as weights to start from or to export, beside those of other people."""

import os
from pathlib import Path

from gptscale.checkpoint.layout import MANIFEST, CheckpointManifest, checkpoints_dir
from gptscale.checkpoint.model import find_checkpoint, saved_weights
from gptscale.config.load import parse_config
from gptscale.config.schema import NO_FUNCTION
from gptscale.weights.find import find_weights
from gptscale.weights.gpt2 import TABLES
from gptscale.weights.source import Source, Stored


def open_weights(name: str) -> Source:
    """Open a run's newest checkpoint, a checkpoint, or what `find_weights` knows; reads no tensor yet."""
    path = Path(os.path.expanduser(name))  # unlike Path's own, this knows no home that nobody has
    if (path / MANIFEST).is_file() or checkpoints_dir(path).is_dir():
        return checkpoint_source(*find_checkpoint(path))
    return find_weights(name)


def checkpoint_source(folder: Path, manifest: CheckpointManifest) -> Source:
    """The weights of a checkpoint, without padding."""
    cfg = parse_config(manifest.config, str(folder))
    tensors = saved_weights(folder, manifest)
    for name in tensors.keys() & set(TABLES):
        tensors[name] = _cropped(tensors[name], cfg.model.vocab_size)
    fields = cfg.model.model_dump(exclude=NO_FUNCTION)
    return Source(str(folder), "gptscale", fields, tensors, tokenizer=cfg.data.tokenizer)


def _cropped(stored: Stored, rows: int) -> Stored:
    return Stored((rows, *stored.shape[1:]), lambda: stored.read()[:rows])

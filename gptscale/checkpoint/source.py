"""Checkpoints as weights to start from or to export, beside those of other people."""

from pathlib import Path

from gptscale.checkpoint.layout import MANIFEST, CheckpointManifest, checkpoints_dir
from gptscale.checkpoint.model import find_checkpoint, saved_weights
from gptscale.config.load import parse_config
from gptscale.weights.find import find_weights
from gptscale.weights.gpt2 import TABLES
from gptscale.weights.source import Source, Stored

FIELDS = (
    "vocab_size",
    "context_length",
    "emb_dim",
    "n_heads",
    "n_layers",
    "qkv_bias",
    "norm_bias",
    "tie_embeddings",
    "gelu",
)
"""What decides the function that weights belong to."""


def open_weights(name: str) -> Source:
    """Open a run's newest checkpoint, a checkpoint, or what `find_weights` knows; reads no tensor yet."""
    path = Path(name).expanduser()
    if (path / MANIFEST).is_file() or checkpoints_dir(path).is_dir():
        return checkpoint_source(*find_checkpoint(path))
    return find_weights(name)


def checkpoint_source(folder: Path, manifest: CheckpointManifest) -> Source:
    """The weights of a checkpoint, without padding."""
    model = parse_config(manifest.config, str(folder)).model
    tensors = saved_weights(folder, manifest)
    for name in tensors.keys() & set(TABLES):
        tensors[name] = _cropped(tensors[name], model.vocab_size)
    return Source(str(folder), "gptscale", model.model_dump(include=set(FIELDS)), tensors)


def _cropped(stored: Stored, rows: int) -> Stored:
    return Stored((rows, *stored.shape[1:]), lambda: stored.read()[:rows])

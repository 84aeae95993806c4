"""A model from a checkpoint, for evaluation, generation and export."""

import logging
from pathlib import Path

import torch

from gptscale.checkpoint.find import verified_manifest
from gptscale.checkpoint.layout import MANIFEST, CheckpointManifest, list_checkpoints, step_dir, tensor_key
from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.errors import CheckpointError
from gptscale.model.gpt import GPTModel
from gptscale.weights.files import open_tensors

LOG = logging.getLogger(__name__)


def load_model(path: str | Path, device: torch.device | str = "cpu") -> tuple[GPTModel, Config]:
    """The model of a checkpoint folder, or of a run's newest good one, in evaluation mode, with its config.

    Raises CheckpointError if there is none or a file is not as it was written.
    """
    folder, manifest = find_checkpoint(Path(path))
    cfg = parse_config(manifest.config, str(folder))
    model = GPTModel(cfg.model, seed=None)
    flat = {name: p.detach().view(-1) for name, p in model.named_parameters()}
    for file in manifest.files:
        with open_tensors(folder / file) as reader:
            for name, record in manifest.parameters.items():
                for r in record.ranges:
                    if r.file == file:
                        place = flat[name][r.start : r.start + r.numel]
                        reader.read_into(place, tensor_key("weight", name, r.start), 0)
    return model.to(device).eval(), cfg


def find_checkpoint(path: Path, *, best: bool = False) -> tuple[Path, CheckpointManifest]:
    """The checkpoint that a path names, with every file checked: itself, or the newest good one of a run.

    best takes a run's one with the lowest validation loss. Warns of newer ones that are passed over.
    Raises CheckpointError if none is left.
    """
    if (path / MANIFEST).is_file():
        return path, verified_manifest(path)
    if best:
        path = _best(path)
        return path, verified_manifest(path)
    problem: CheckpointError | None = None
    for folder in list_checkpoints(path):
        try:
            return folder, verified_manifest(folder)
        except CheckpointError as error:
            problem = error
            LOG.warning("passing over a bad checkpoint: %s", error)
    if problem:
        raise problem
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a run folder or one of its checkpoints/step-* folders")
    raise CheckpointError(f"{path} holds no checkpoint; give a run folder that `gptscale train` has saved to")


def _best(run_dir: Path) -> Path:
    """The checkpoint that the newest one's ledger calls the best."""
    folder, manifest = find_checkpoint(run_dir)
    best = manifest.ledger["best"]
    if best is None:
        raise CheckpointError(
            f"{folder} knows of no best checkpoint: none was evaluated at its very step; "
            "let checkpoint.every_steps be a multiple of eval.every_steps"
        )
    found = step_dir(run_dir, best["step"])
    if not found.is_dir():
        raise CheckpointError(f"{found}, the best by validation loss, is gone; checkpoint.keep_best=true keeps it")
    return found

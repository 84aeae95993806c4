"""A model from a checkpoint, for evaluation, generation and export."""

import logging
import os
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gptscale.checkpoint.find import verified
from gptscale.checkpoint.layout import MANIFEST, CheckpointManifest, list_checkpoints, step_dir, tensor_key
from gptscale.checkpoint.portable import check_names
from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.errors import CheckpointAccessError, CheckpointError, GptscaleError
from gptscale.model.gpt import GPTModel
from gptscale.weights.files import stored_tensors
from gptscale.weights.source import Stored

LOG = logging.getLogger(__name__)


def load_model(path: str | Path, device: torch.device | str = "cpu") -> tuple[GPTModel, Config]:
    """The model of a checkpoint folder, or of a run's newest good one, in evaluation mode, with its config.

    Raises CheckpointError if there is none or a file is not as it was written.
    """
    folder, manifest = find_checkpoint(Path(path))
    try:
        return load_verified(folder, manifest, device)
    except GptscaleError:
        if not is_gone(folder):
            raise
    return load_model(path, device)


def load_verified(
    folder: Path, manifest: CheckpointManifest, device: torch.device | str = "cpu"
) -> tuple[GPTModel, Config]:
    """As `load_model`, of a checkpoint that `find_checkpoint` has found."""
    cfg = parse_config(manifest.config, str(folder))
    model = GPTModel(cfg.model, seed=None)
    check_names(folder, manifest, [name for name, _ in model.named_parameters()])
    stored = saved_weights(folder, manifest)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(stored[name].read())
    return model.to(device).eval(), cfg


def is_gone(folder: Path) -> bool:
    """Whether a checkpoint that was found is there no more: a training that goes on keeps only its last ones."""
    return not os.path.lexists(folder)


def saved_weights(folder: Path, manifest: CheckpointManifest) -> dict[str, Stored]:
    """The weights of a checkpoint, each put together from the ranks' parts when it is asked for."""
    parts = {file: stored_tensors(folder / file, "pread") for file in manifest.files}

    def read(name: str) -> Tensor:
        record = manifest.parameters[name]
        values = torch.empty(record.shape)
        for r in record.ranges:
            values.view(-1)[r.start : r.start + r.numel] = parts[r.file][tensor_key("weight", name, r.start)].read()
        return values

    return {name: Stored(tuple(record.shape), partial(read, name)) for name, record in manifest.parameters.items()}


def find_checkpoint(path: Path, *, best: bool = False) -> tuple[Path, CheckpointManifest]:
    """The checkpoint that a path names, with every file checked: itself, or the newest good one of a run.

    best takes a run's one with the lowest validation loss. Warns of newer ones that are passed over; one that a
    training replaces meanwhile is none of them.
    Raises CheckpointError if none is left, and CheckpointAccessError for one that cannot be reached.
    """
    if (path / MANIFEST).is_file():
        if best:
            raise CheckpointError(
                f"{path} is one checkpoint, and --best chooses among those of a run; give the run folder"
            )
        return path, verified(path)
    problem: CheckpointError | None = None
    for folder in [_best(path)] if best else list_checkpoints(path):
        try:
            return folder, verified(folder)
        except CheckpointAccessError:
            raise  # it is out of reach, and may be as good as any
        except CheckpointError as error:
            if is_gone(folder):
                return find_checkpoint(path, best=best)
            if best:
                raise
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
    best = manifest.ledger.get("best")  # imported weights have no ledger
    if best is None:
        raise CheckpointError(
            f"{folder} knows of no best checkpoint: none was evaluated at its very step; "
            "let checkpoint.every_steps be a multiple of eval.every_steps"
        )
    found = step_dir(run_dir, best["step"])
    if not found.is_dir():
        raise CheckpointError(f"{found}, the best by validation loss, is gone; checkpoint.keep_best=true keeps it")
    return found

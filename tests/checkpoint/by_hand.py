"""Checkpoints that tests write themselves, tensor by tensor, so that they can be wrong in any way."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from xxhash import xxh3_128

from gptscale.checkpoint.layout import CheckpointManifest, FileRecord, ParameterRecord, Range, write_manifest

FILES = ("part-00000-of-00002.safetensors", "part-00001-of-00002.safetensors")
W, B = torch.arange(6.0), torch.tensor([3.0, -4.0])
TENSORS: dict[str, dict[str, torch.Tensor]] = {
    FILES[0]: {"weight/w@0": W[:4], "exp_avg/w@0": W[:4] / 10},
    FILES[1]: {"weight/w@4": W[4:], "exp_avg/w@4": W[4:] / 10, "weight/b@0": B, "exp_avg/b@0": 2 * B},
}
"""Parameter w of shape (2, 3) in two ranges, and b of shape (2,) in one."""

RANGES = {"w": [Range(0, 4, FILES[0]), Range(4, 2, FILES[1])], "b": [Range(0, 2, FILES[1])]}


def write_checkpoint(
    folder: Path,
    tensors: dict[str, dict[str, torch.Tensor]] = TENSORS,
    ranges: dict[str, list[Range]] = RANGES,
    **facts: Any,
) -> Path:
    """Write a checkpoint whose hashes are right whatever it says."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, held in tensors.items():
        save_file({key: t.contiguous() for key, t in held.items()}, folder / name)
        content = (folder / name).read_bytes()
        files[name] = FileRecord(len(content), xxh3_128(content).hexdigest())
    shapes = {"w": [2, 3], "b": [2]}
    parameters = {
        name: ParameterRecord(shapes[name], ["weight", "exp_avg"], {"step": 5.0}, found)
        for name, found in ranges.items()
    }
    told = {"step": 5, "ledger": {"step": 5}, "config": {}, "data_fingerprint": "f" * 64, "engine": "ddp", "world": 2}
    write_manifest(folder, CheckpointManifest(**{**told, **facts}, files=files, parameters=parameters))
    return folder

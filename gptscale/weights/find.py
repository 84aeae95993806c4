"""From what a user names to weights: a short name, a Hub name, a folder or a file."""

import os
from pathlib import Path

from gptscale.errors import WeightsError
from gptscale.weights import huggingface, tensorflow
from gptscale.weights.hub import download, hub_name
from gptscale.weights.others import open_file
from gptscale.weights.source import Source

NANOGPT = "ckpt.pt"


def find_weights(name: str) -> Source:
    """Open the weights of a path, or else of a name on the Hub; reads no tensor yet.

    Raises WeightsError if there is nothing of GPT-2's family.
    """
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return open_file(path)
    if path.suffix in (".pth", ".pt", ".bin", ".safetensors") or name.startswith(("/", "./", "../", "~")):
        raise WeightsError(f"{name} does not exist; give a file, a folder, a run or a Hub name")
    folder = download(hub_name(name))
    return huggingface.open_folder(folder, f"{hub_name(name)} at {folder.name[:12]}")


def _open_folder(folder: Path) -> Source:
    if (folder / huggingface.CONFIG).is_file():
        return huggingface.open_folder(folder)
    if (folder / tensorflow.HPARAMS).is_file():
        return tensorflow.open_tensorflow(folder)
    if (folder / NANOGPT).is_file():
        return open_file(folder / NANOGPT)
    raise WeightsError(
        f"{folder} holds no weights that are known here: neither {huggingface.CONFIG} (transformers), "
        f"nor {tensorflow.HPARAMS} (OpenAI), {NANOGPT} (nanoGPT), nor a checkpoint of gptscale"
    )

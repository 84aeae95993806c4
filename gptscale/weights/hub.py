"""Models on the Hugging Face Hub, or in its client's cache."""

import difflib
from pathlib import Path

from gptscale.errors import WeightsError, first_line

NAMES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "124M": "openai-community/gpt2",
    "350M": "openai-community/gpt2-medium",
    "774M": "openai-community/gpt2-large",
    "1558M": "openai-community/gpt2-xl",
}
"""GPT-2's four sizes by their short names."""

SAFE = ["config.json", "*.safetensors", "*.safetensors.index.json"]
PICKLED = ["config.json", "pytorch_model*.bin", "pytorch_model.bin.index.json"]


def hub_name(name: str) -> str:
    """The owner/name that a short name stands for; owner/name, with @revision or without, is taken as it is.

    Raises WeightsError for any other name.
    """
    if name in NAMES:
        return NAMES[name]
    if name.count("/") == 1 and all(name.split("/")):
        return name
    close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(NAMES)}, and owner/name on the Hub"
    raise WeightsError(f"{name} is no file, no folder and no name of GPT-2's; {hint}")


def download(name: str) -> Path:
    """The folder with a model's config and weights; safetensors where the Hub has them. Takes what the cache has.

    Raises WeightsError where the Hub cannot be reached and the cache lacks the model.
    """
    repo, _, revision = name.partition("@")
    folder = _snapshot(repo, revision or None, SAFE)
    if any(folder.glob("*.safetensors")):
        return folder
    return _snapshot(repo, revision or None, PICKLED)


def _snapshot(repo: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError, HFValidationError) as error:
        raise WeightsError(
            f"the Hub has no model {repo} for you ({type(error).__name__}: {first_line(error)}); check the name, "
            "which is no path here either, or set HF_TOKEN"
        ) from None
    except (LocalEntryNotFoundError, OSError) as error:
        offline = constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE=1" if offline else f"the Hub cannot be reached ({type(error).__name__})"
        raise WeightsError(
            f"{repo} is not in the Hub's cache, and {why}; on a machine with a network run "
            f"`hf download {repo}` and set HF_HOME to a copy of its cache, or give the path of a folder, which {repo} "
            "is not here"
        ) from None

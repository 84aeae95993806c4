"""gptscale: pre-train GPT-2-family language models, the same run on a laptop and on a cluster.

The verbs of the command line are functions here. Names are imported on first use, so that
`import gptscale` and `gptscale --help` do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptscale.checkpoint.model import load_model as load_model
    from gptscale.cli.evaluate import evaluate as evaluate
    from gptscale.cli.export import export as export
    from gptscale.cli.import_weights import import_weights as import_weights
    from gptscale.config.load import load_config as load_config
    from gptscale.config.schema import Config as Config
    from gptscale.config.schema import ModelConfig as ModelConfig
    from gptscale.data.prepare import prepare as prepare
    from gptscale.data.tokenizer import load_tokenizer as load_tokenizer
    from gptscale.generation.text import generate_text as generate_text
    from gptscale.model.gpt import GPTModel as GPTModel
    from gptscale.training.run import train as train

__version__ = "0.1.0"

_HOMES = {
    "Config": "gptscale.config.schema",
    "GPTModel": "gptscale.model.gpt",
    "ModelConfig": "gptscale.config.schema",
    "evaluate": "gptscale.cli.evaluate",
    "export": "gptscale.cli.export",
    "generate_text": "gptscale.generation.text",
    "import_weights": "gptscale.cli.import_weights",
    "load_config": "gptscale.config.load",
    "load_model": "gptscale.checkpoint.model",
    "load_tokenizer": "gptscale.data.tokenizer",
    "prepare": "gptscale.data.prepare",
    "train": "gptscale.training.run",
}

__all__ = [
    "Config",
    "GPTModel",
    "ModelConfig",
    "__version__",
    "evaluate",
    "export",
    "generate_text",
    "import_weights",
    "load_config",
    "load_model",
    "load_tokenizer",
    "prepare",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gptscale' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    value = getattr(home, name)
    globals()[name] = value
    return value

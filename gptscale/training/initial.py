"""The weights that a new run starts from: drawn by its seed, or those that model.init_from names."""

from collections.abc import Iterable

from torch import Tensor

from gptscale.checkpoint.source import open_weights
from gptscale.config.schema import Config
from gptscale.model.gpt import seeded_weights
from gptscale.runtime.engine import Engine
from gptscale.runtime.fragments import Fragment
from gptscale.weights.gpt2 import check_source, notes_on, read_parameters
from gptscale.weights.source import Source


def load_initial_weights(cfg: Config, engine: Engine) -> None:
    """Fill what each rank holds of the weights. All ranks call this together.

    A rank draws or reads one tensor at a time and keeps its own ranges of it. Raises WeightsError if the weights do
    not fit the model section.
    """
    if cfg.model.init_from is None:
        engine.agree(lambda: _fill(seeded_weights(cfg.model, cfg.run.seed), engine))
        engine.loaded()
        return
    engine.agree(lambda: _open(cfg) if engine.is_first else None)  # what has to be downloaded is so once
    source = engine.agree(lambda: _open(cfg))
    engine.agree(lambda: _fill(read_parameters(source, cfg.model), engine))
    engine.loaded()
    for line in _told(source, cfg):
        engine.say(line)


def _open(cfg: Config) -> Source:
    assert cfg.model.init_from is not None
    source = open_weights(cfg.model.init_from)
    check_source(source, cfg.model)
    return source


def _fill(parameters: Iterable[tuple[str, Tensor]], engine: Engine) -> None:
    held: dict[str, list[Fragment]] = {}
    for fragment in engine.weight_fragments():
        held.setdefault(fragment.name, []).append(fragment)
    for name, values in parameters:
        for fragment in held.get(name, []):
            fragment.tensors["weight"].copy_(values.view(-1)[fragment.start : fragment.start + fragment.numel])


def _told(source: Source, cfg: Config) -> list[str]:
    lines = [f"starting from {source.origin}", *notes_on(source, cfg.model)]
    if source.tokenizer not in (None, cfg.data.tokenizer):
        lines.append(
            f"WARNING: {source.origin} names the tokenizer {source.tokenizer}, and this run has "
            f"data.tokenizer={cfg.data.tokenizer}"
        )
    return lines

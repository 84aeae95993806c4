"""The weights that a new run starts from, where model.init_from names some."""

from gptscale.checkpoint.source import open_weights
from gptscale.config.schema import Config
from gptscale.runtime.engine import Engine
from gptscale.runtime.fragments import Fragment
from gptscale.weights.gpt2 import check_source, read_parameters
from gptscale.weights.source import Source


def load_initial_weights(cfg: Config, engine: Engine) -> None:
    """Fill what each rank holds of the weights. All ranks call this together.

    A rank reads one tensor at a time and keeps its own ranges of it. Raises WeightsError if the weights do not
    fit the model section.
    """
    engine.agree(lambda: _open(cfg) if engine.is_first else None)  # what has to be downloaded is so once
    source = engine.agree(lambda: _open(cfg))
    engine.agree(lambda: _fill(source, cfg, engine))
    engine.loaded()
    for line in _told(source, cfg):
        engine.say(line)


def _open(cfg: Config) -> Source:
    assert cfg.model.init_from is not None
    source = open_weights(cfg.model.init_from)
    check_source(source, cfg.model)
    return source


def _fill(source: Source, cfg: Config, engine: Engine) -> None:
    held: dict[str, list[Fragment]] = {}
    for fragment in engine.weight_fragments():
        held.setdefault(fragment.name, []).append(fragment)
    for name, values in read_parameters(source, cfg.model):
        for fragment in held.get(name, []):
            fragment.tensors["weight"].copy_(values.view(-1)[fragment.start : fragment.start + fragment.numel])


def _told(source: Source, cfg: Config) -> list[str]:
    lines = [f"starting from {source.origin}", *source.notes]
    if (known := source.fields["context_length"]) > cfg.model.context_length:
        lines.append(f"positions: the first {cfg.model.context_length} of {known}")
    return lines

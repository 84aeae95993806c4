"""What to change so that a run fits, the smallest change first."""

from collections.abc import Iterator
from itertools import product

from gptscale.config.schema import Config
from gptscale.planning.launch import ENGINES, Launch, legal_gpu_counts
from gptscale.planning.memory import CPU, fits, fitting_micro_batches
from gptscale.runtime.gpus import GPUS, Gpu


def nearest_that_fits(cfg: Config, launch: Launch, gpu: Gpu) -> str | None:
    """The options and settings that make it fit; None if none do.

    A smaller micro-batch comes first, then computing activations again, another engine, more GPUs, larger GPUs.
    """
    for words, changed, place, card in _candidates(cfg, launch, gpu):
        if fits(changed, place, card):
            return " ".join(words)
        if fitting := fitting_micro_batches(changed, place, card):
            smaller = [n for n in fitting if n < place.micro_batch_sequences]
            return " ".join([*words, f"train.micro_batch_sequences={max(smaller) if smaller else min(fitting)}"])
    return None


def _candidates(cfg: Config, launch: Launch, gpu: Gpu) -> Iterator[tuple[list[str], Config, Launch, Gpu]]:
    """Ways to change a launch, with the words for each."""
    engines = [launch.engine, *(e for e in ENGINES if e not in ("none", "ddp", "hsdp", launch.engine))]
    alone = gpu.name == CPU  # more ranks would share its memory, and what it measured says nothing of GPUs
    more = [n for n in legal_gpu_counts(cfg) if n > launch.gpus and not alone]
    able = [g for g in GPUS if g.memory_gib > gpu.memory_gib and g.computes(cfg.train) and not alone]
    larger = sorted(able, key=lambda g: g.memory_gib)
    places = [*((gpu, n) for n in (launch.gpus, *more)), *((g, launch.gpus) for g in larger)]
    for (card, gpus), engine, (changed, setting) in product(places, engines, _recomputing(cfg)):
        place = launch.under(engine, gpus)
        if place is None:
            continue
        options = {"--gpu": (card.name, gpu.name), "--gpus": (gpus, launch.gpus), "--engine": (engine, launch.engine)}
        words = [f"{option} {new}" for option, (new, old) in options.items() if new != old]
        yield [*words, *setting], changed, place, card


def _recomputing(cfg: Config) -> list[tuple[Config, list[str]]]:
    """The config, and the one that computes activations again."""
    if cfg.train.activation_checkpointing:
        return [(cfg, [])]
    again = cfg.with_changes(train={"activation_checkpointing": True})
    return [(cfg, []), (again, ["train.activation_checkpointing=true"])]

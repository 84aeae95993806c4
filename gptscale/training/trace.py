"""What a step of a run read. No GPU and no rank is asked: it follows from the config and the corpus."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gptscale.config.load import load_config
from gptscale.data.corpus import check_corpus, open_corpus
from gptscale.data.loader import Sampler, count_samples
from gptscale.data.tokenizer import load_tokenizer
from gptscale.data.trace import Documents, TracedSample, trace_positions
from gptscale.errors import TrainingError
from gptscale.training.provenance import recorded_fingerprint


def trace_step(run_dir: Path, step: int, data_dir: Path | None = None) -> Iterator[TracedSample]:
    """The samples of a step, counted from 1 as in log.jsonl, in the order of their positions.

    data_dir is where the corpus lies now, if not where the config says. Raises TrainingError if it is another one.
    """
    if not (run_dir / "config.yaml").is_file():
        raise TrainingError(f"{run_dir} holds no config.yaml; give a run folder that `gptscale train` has written to")
    cfg = load_config(run_dir / "config.yaml")
    folder = data_dir or cfg.data.dir
    corpus = open_corpus(folder)
    check_corpus(corpus, cfg)
    recorded, found = recorded_fingerprint(run_dir), corpus.manifest.fingerprint
    if recorded is not None and recorded != found:
        raise TrainingError(
            f"{run_dir} was trained on data {recorded[:12]}, but {folder} holds {found[:12]}; "
            "give the corpus of the run with --data-dir"
        )
    sampler = Sampler(count_samples(len(corpus.train), cfg.model.context_length, cfg.stride), cfg.stride, cfg.run.seed)
    documents = Documents(folder, corpus.manifest.of("train"), load_tokenizer(cfg.data.tokenizer))
    first = (step - 1) * cfg.sequences_per_step
    positions = np.arange(first, first + cfg.sequences_per_step)
    return trace_positions(sampler, documents, positions, cfg.model.context_length)

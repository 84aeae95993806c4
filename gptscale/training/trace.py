"""What a step of a run read. No GPU and no rank is asked: it follows from the config and the corpus."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gptscale.config.load import load_config
from gptscale.config.schema import Config
from gptscale.data.corpora import check_corpora, open_corpora
from gptscale.data.order import positions_of
from gptscale.data.tokenizer import load_tokenizer
from gptscale.data.trace import Documents, TracedSample, trace_positions
from gptscale.errors import TrainingError
from gptscale.tracking.provenance import last_start
from gptscale.training.plan import make_plan
from gptscale.training.segments import newest_state, segments_of


def trace_step(run_dir: Path, step: int, data_dir: Path | None = None) -> Iterator[TracedSample]:
    """The samples of a step, counted from 1 as in log.jsonl, in the order of their positions.

    data_dir is where the corpus lies now, if not where the config says. Raises TrainingError if it is another one.
    """
    if not (run_dir / "config.yaml").is_file():
        raise TrainingError(f"{run_dir} holds no config.yaml; give a run folder that `gptscale train` has written to")
    cfg = load_config(run_dir / "config.yaml")
    if data_dir is not None:
        if cfg.data.mixture:
            raise TrainingError(
                f"{run_dir} trained on a mixture, of which --data-dir can name one corpus only; put its folders back, "
                f"or mend data.mixture in {run_dir / 'config.yaml'}"
            )
        cfg = cfg.with_changes(data={"dir": data_dir, "mixture": ()})
    corpora = check_corpora(open_corpora(cfg), cfg)
    recorded, found = last_start(run_dir).get("data_fingerprint"), corpora.fingerprint
    if recorded is not None and recorded != found:
        where = ", ".join(map(str, corpora.folders))
        raise TrainingError(
            f"{run_dir} was trained on data {recorded[:12]}, but {where} holds {found[:12]}; "
            "give the corpus of the run with --data-dir"
        )
    opened = list(zip(corpora.folders, corpora.parts, strict=True))
    documents = Documents(opened, load_tokenizer(cfg.data.tokenizer))
    sampler = corpora.sampler(cfg)
    positions = _positions(run_dir, cfg, step, sampler.samples)
    return trace_positions(sampler, documents, positions, cfg.model.context_length)


def _positions(run_dir: Path, cfg: Config, step: int, samples_per_epoch: int) -> npt.NDArray[np.int64]:
    """The positions of a step's samples, in the segment of the run that the step lies in."""
    segments = segments_of(run_dir, cfg)
    last = make_plan(cfg, samples_per_epoch, 1, segments[-1]).total_steps
    if step > last:
        raise TrainingError(f"--step={step} is behind the last step of {run_dir}; give a step from 1 to {last}")
    segment = [s for s in segments if s.step < step][-1]
    sequences = segment.tokens_per_step // cfg.model.context_length
    first = segment.samples + (step - 1 - segment.step) * sequences
    state = newest_state(run_dir)
    return positions_of(np.arange(first, first + sequences), state.skipped_windows if state else ())

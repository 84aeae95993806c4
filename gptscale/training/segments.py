"""The stretches of a run with one batch size each, as its folder tells."""

from contextlib import suppress
from pathlib import Path

from gptscale.checkpoint.layout import list_checkpoints, read_manifest
from gptscale.config.schema import Config
from gptscale.errors import CheckpointError
from gptscale.training.plan import Segment
from gptscale.training.state import TrainState


def newest_state(run_dir: Path) -> TrainState | None:
    """The ledger of the newest checkpoint; None without one. Raises CheckpointError if it cannot be read."""
    checkpoints = list_checkpoints(run_dir)
    return TrainState.from_ledger(read_manifest(checkpoints[0]).ledger) if checkpoints else None


def segments_of(run_dir: Path, cfg: Config) -> list[Segment]:
    """Those up to the newest checkpoint, and the one that the config begins there if its batch is another."""
    state = newest_state(run_dir)
    if state is None:
        return [Segment(0, 0, cfg.train.tokens_per_step)]
    if state.segments[-1].tokens_per_step != cfg.train.tokens_per_step:  # begun since, and not saved yet
        return [*state.segments, Segment(state.step, state.samples, cfg.train.tokens_per_step)]
    return state.segments


def likely_segment(cfg: Config) -> Segment:
    """The one that a start is in, as far as can be told without reading weights; `resume` will know."""
    with suppress(CheckpointError):  # it is damaged
        return segments_of(cfg.run.dir, cfg)[-1]
    return Segment(0, 0, cfg.train.tokens_per_step)

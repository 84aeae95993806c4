"""How much disk a corpus will need, from a few of its documents, before the first byte is written."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptscale.data.job import Job
from gptscale.data.sources import Streamed
from gptscale.data.texts import flat
from gptscale.data.unit import Unit
from gptscale.errors import DataError

_SAMPLED_UNITS = 8
_SAMPLED_BYTES = 2**18  # of text in each
_STARTS_BYTES = 16  # a document's start: two int64


@dataclass(frozen=True)
class Need:
    """Bytes that units will take, and those that are free."""

    needed: int
    free: int


def estimate_need(job: Job, units: Sequence[Unit]) -> Need | None:
    """What these units will take, judged by the first documents of some of them; None for streamed files."""
    if isinstance(job.source, Streamed) or not units:
        return None
    chosen = [units[i * len(units) // _SAMPLED_UNITS] for i in range(min(_SAMPLED_UNITS, len(units)))]
    sampled = np.array([_sample(job, unit) for unit in dict.fromkeys(chosen)])
    documents, tokens = sampled.sum(axis=0).tolist()
    per_document = tokens / documents * np.dtype(job.settings.dtype).itemsize + _STARTS_BYTES
    wanted = sum(unit.stop - unit.start for unit in units if unit.stop is not None)
    return Need(int(wanted * per_document), shutil.disk_usage(job.data.dir).free)


def check_need(job: Job, units: Sequence[Unit]) -> Need | None:
    """Estimate what units will take. Raises DataError if the disk has not that much free."""
    need = estimate_need(job, units)
    if need is not None and need.needed > need.free:
        raise DataError(
            f"data.dir={job.data.dir} needs about {need.needed / 1e9:,.3g} GB, and {need.free / 1e9:,.3g} GB are free; "
            "free some space, or choose a data.dir on a larger disk"
        )
    return need


def _sample(job: Job, unit: Unit) -> tuple[int, int]:
    """Documents and tokens at the beginning of a unit."""
    assert not isinstance(job.source, Streamed)
    assert unit.stop is not None
    texts = next(iter(job.source.read(unit.start, unit.stop)))
    _, offsets = flat(texts)
    few = texts.slice(0, max(1, int(np.searchsorted(offsets, _SAMPLED_BYTES, "right")) - 1))
    ids, _ = job.tokenizer.encode_texts(few)
    return len(few), len(ids) + len(few)

"""How much disk a corpus will need, from a few of its documents, before the first byte is written."""

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gptscale.data.files import bytes_half_written
from gptscale.data.job import Job
from gptscale.data.streamed import Streamed
from gptscale.data.texts import flat, list_texts
from gptscale.data.unit import Unit
from gptscale.errors import DataError

_SAMPLED_UNITS = 4
_PLACES = 8  # in each of them: documents may be sorted by length
_SAMPLED_DOCUMENTS = 32  # at each, at most
_SAMPLED_TEXT_BYTES = 2**22  # at each, or one batch of the source
_ENCODED_BYTES = 2**15  # of them
_STARTS_BYTES = 16  # a document's start: two int64


@dataclass(frozen=True)
class Need:
    """Bytes that units will take, and those that are free for them."""

    needed: int
    free: int


def estimate_need(job: Job, units: Sequence[Unit]) -> Need | None:
    """What these units will take, judged by documents from all over some of them; None for streamed files.

    It is never more than what all bytes of the source take, since one huge document may stand among tiny ones.
    """
    if isinstance(job.source, Streamed) or not units:
        return None
    with ThreadPoolExecutor(1) as thread:
        loading = thread.submit(job.load_engines)  # Python's modules, while the source is read without Python's lock
        places = [place for unit in _spread(units) for place in _places(unit)]
        samples = [_sample(job, start, min(start + _SAMPLED_DOCUMENTS, stop)) for start, stop in places]
        loading.result()
    # Of long documents few are read, so each place counts by its rows.
    documents = sum(stop - start for start, stop in places)
    text_bytes = sum(
        (stop - start) * read_bytes / read for (start, stop), (read, read_bytes, _) in zip(places, samples, strict=True)
    )
    excerpts = list_texts(excerpt for _, _, excerpt in samples)
    encoded_bytes, tokens = len(flat(excerpts)[0]), len(job.tokenizer.encode_texts(excerpts)[0])
    wanted = sum(unit.stop - unit.start for unit in units if unit.stop is not None)
    wanted_bytes = min(wanted * text_bytes / documents, job.source.most_bytes())
    text_tokens = wanted_bytes * tokens / max(1, encoded_bytes)
    needed = (text_tokens + wanted) * np.dtype(job.settings.dtype).itemsize + wanted * _STARTS_BYTES
    # What other tasks have written of their units is counted as needed, and no longer free.
    return Need(int(needed), shutil.disk_usage(job.data.folder).free + bytes_half_written(job.data.folder))


def _spread(units: Sequence[Unit]) -> list[Unit]:
    """A few units from all over the source, the first among them."""
    count = min(_SAMPLED_UNITS, len(units))
    return [units[i * len(units) // count] for i in range(count)]


def check_need(job: Job, units: Sequence[Unit]) -> Need | None:
    """Estimate what units will take. Raises DataError if the disk has not that much free."""
    need = estimate_need(job, units)
    if need is not None and need.needed > need.free:
        raise DataError(
            f"data.dir={job.data.folder} needs about {need.needed / 1e9:,.3g} GB, and "
            f"{need.free / 1e9:,.3g} GB are free; "
            "free some space, or choose a data.dir on a larger disk"
        )
    return need


def _places(unit: Unit) -> list[tuple[int, int]]:
    """A few stretches that make up a unit: the first row of each, and that behind it."""
    assert unit.stop is not None
    rows = unit.stop - unit.start
    starts = sorted({unit.start + i * rows // _PLACES for i in range(_PLACES)})
    return list(pairwise([*starts, unit.stop]))


def _sample(job: Job, start: int, stop: int) -> tuple[int, int, str]:
    """Documents from start on, at most to stop - 1, and their bytes, and where their text begins."""
    assert not isinstance(job.source, Streamed)
    documents = text_bytes = 0
    excerpt = b""
    for texts in job.source.read(start, stop):
        content, _ = flat(texts)
        documents, text_bytes = documents + len(texts), text_bytes + len(content)
        excerpt += bytes(content[: _ENCODED_BYTES - len(excerpt)].data)
        if text_bytes >= _SAMPLED_TEXT_BYTES:
            break
    return documents, text_bytes, str(excerpt, "utf-8", "ignore")

"""How much disk a corpus will need, from a few of its documents, before the first byte is written."""

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from gptscale.data.job import Job
from gptscale.data.sources import Streamed
from gptscale.data.texts import flat, list_texts
from gptscale.data.unit import Unit
from gptscale.errors import DataError

_SAMPLED_UNITS = 4
_SAMPLED_DOCUMENTS = 256  # of each, at most
_SAMPLED_BYTES = 2**17  # of text in each
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
    with ThreadPoolExecutor(1) as thread:
        loading = thread.submit(job.load_engines)  # Python's modules, while the source is read without Python's lock
        samples = [_sample(job, unit) for unit in _spread(units)]
        loading.result()
    documents = sum(documents for documents, _, _ in samples)
    text_bytes = sum(text_bytes for _, text_bytes, _ in samples)
    excerpts = list_texts(excerpt for _, _, excerpt in samples)
    encoded_bytes, tokens = len(flat(excerpts)[0]), len(job.tokenizer.encode_texts(excerpts)[0])
    tokens_per_document = text_bytes / documents * tokens / max(1, encoded_bytes) + 1
    per_document = tokens_per_document * np.dtype(job.settings.dtype).itemsize + _STARTS_BYTES
    wanted = sum(unit.stop - unit.start for unit in units if unit.stop is not None)
    return Need(int(wanted * per_document), shutil.disk_usage(job.data.folder).free)


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


def _sample(job: Job, unit: Unit) -> tuple[int, int, str]:
    """Documents and their bytes at the beginning of a unit, and where their text begins."""
    assert not isinstance(job.source, Streamed)
    assert unit.stop is not None
    texts = next(iter(job.source.read(unit.start, min(unit.stop, unit.start + _SAMPLED_DOCUMENTS))))
    content, _ = flat(texts)
    return len(texts), len(content), str(content[:_SAMPLED_BYTES].data, "utf-8", "ignore")

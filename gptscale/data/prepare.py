"""The preparation of a corpus: from the source to shards and a manifest, restartable at every unit.

On one machine `prepare` does it all. On many, each runs `prepare_task` for its share of the units, and
`finish` writes the manifest when all are there.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import groupby

from gptscale.config.data import DataConfig
from gptscale.config.schema import Config
from gptscale.data.estimate import check_need
from gptscale.data.files import remove_leftovers
from gptscale.data.job import Job, earlier_manifest, open_job, remove_all
from gptscale.data.manifest import Dtype, Manifest
from gptscale.data.progress import Progress, Say, summary
from gptscale.data.shard import ShardHeader, starts_path
from gptscale.data.unit import Receipt, Unit, remove_unnamed
from gptscale.data.workers import do_units
from gptscale.errors import ConfigError, DataError


def prepare(cfg: Config, say: Say = print, *, workers: int = 1) -> Manifest:
    """Make the corpus of data.dir, or what is missing or damaged of it; what is whole is reused.

    With several workers the caller's own module must be importable (`if __name__ == "__main__"`). Raises DataError
    when data.dir holds a corpus of other settings, finished or not, and when nothing is left to train on.
    """
    job = open_job(cfg.data, say)
    receipts = _do(job, job.units, workers, say)
    return _finish(job, [receipts[unit.number] for unit in job.units], say)


def prepare_task(cfg: Config, task: int, tasks: int, say: Say = print, *, workers: int = 1) -> None:
    """Make every tasks-th unit from unit number task on, without a manifest."""
    if not 0 <= task < tasks:
        raise ConfigError(f"--task={task} is none of 0 to {tasks - 1}, which --tasks={tasks} asks for")
    job = open_job(cfg.data, say)
    receipts = _do(job, job.units[task::tasks], workers, say)
    say(f"task {task} of {tasks}: {len(receipts)} of {len(job.units)} units are there; --finish after the last task")


def finish(cfg: Config, say: Say = print) -> Manifest:
    """Write the manifest of a corpus whose units are all there, which is seen by receipts and sizes of files.

    Raises DataError that names the missing units.
    """
    job = open_job(cfg.data)
    receipts, dtype = job.receipts, job.settings.dtype
    missing = [unit.number for unit in job.units if not _is_there(job.data, receipts.get(unit.number), dtype)]
    if missing:
        raise DataError(
            f"data.dir={job.data.folder}: {len(missing)} of {len(job.units)} units are not there: {_ranges(missing)}; "
            f"run their tasks again (unit u is of task u modulo --tasks), or `gptscale prepare CONFIG` for all of them"
        )
    remove_leftovers(job.data.folder, finished=True)
    return _finish(job, [receipts[unit.number] for unit in job.units], say)


def _do(job: Job, units: Sequence[Unit], workers: int, say: Say) -> dict[int, Receipt]:
    job.give_memory_back()
    need = check_need(job, [unit for unit in job.units if unit.number not in job.receipts])  # of all tasks: one disk
    if need is not None:
        all_tasks = " by all tasks" if len(units) < len(job.units) else ""
        say(f"disk: about {need.needed / 1e9:,.3g} GB to write{all_tasks}, {need.free / 1e9:,.3g} GB free")
    progress = Progress(len(units), say, job.data.split)
    receipts: dict[int, Receipt] = {}
    try:
        with closing(do_units(job, units, workers)) as done:
            for unit, receipt, made in done:
                receipts[unit.number] = receipt
                progress.add(unit, receipt, made)
    except BaseException:
        remove_leftovers(job.data.folder)  # what the processes were writing, which have ended
        raise
    job.check_source()
    return receipts


def _finish(job: Job, receipts: Sequence[Receipt], say: Say) -> Manifest:
    """Write the manifest of receipts in the order of their units, and say what there is."""
    shards = tuple(shard for receipt in receipts for shard in receipt.shards)
    manifest = Manifest(settings=job.settings, shards=shards, left_out=sum(r.left_out for r in receipts))
    remove_unnamed(job.data.folder, shards)
    _check_not_empty(manifest, job.data)
    if manifest != earlier_manifest(job.data.folder):
        manifest.save(job.data.folder)
    for line in summary(manifest):
        say(line)
    return manifest


def _check_not_empty(manifest: Manifest, data: DataConfig) -> None:
    """Refuse a corpus without training text; it is of no use, so nothing of it stays."""
    if not manifest.of("train"):
        remove_all(data.folder)
    source = data.given_source
    if not manifest.shards and manifest.left_out:
        limits = {"min_characters": source.min_characters, "max_characters": source.max_characters}
        said = ", ".join(f"data.source.{name}={value}" for name, value in limits.items() if value is not None)
        raise DataError(
            f"data.source.path={source.path}: all documents are empty or left out by {said}; widen the limits"
        )
    if not manifest.shards:
        raise DataError(f"data.source.path={source.path} holds only empty documents")
    if not manifest.of("train"):
        raise DataError(
            f"nothing to train on: all {sum(shard.documents for shard in manifest.of('val'))} documents fell to "
            "validation; use data.split=tail, another data.split_seed, or a lower "
            f"data.validation_fraction={data.validation_fraction}"
        )


def _is_there(data: DataConfig, receipt: Receipt | None, dtype: Dtype) -> bool:
    if receipt is None:
        return False
    for shard in receipt.shards:
        path, size = data.folder / shard.file, ShardHeader(dtype, shard.tokens).file_bytes
        if not (path.is_file() and path.stat().st_size == size and starts_path(path).is_file()):
            return False
    return True


def _ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers, neighbours as a range: 3, 7-9."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)

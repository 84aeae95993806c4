"""The report as one HTML page that needs no network: curves, evaluations, events, samples and configs of runs."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from gptscale.config.load import load_config, settings
from gptscale.disk import write_whole
from gptscale.errors import GptscaleError, TrainingError
from gptscale.tracking.jsonl import LOG_FILE, SAMPLES_FILE, plain, read_log, read_samples
from gptscale.tracking.lines import evaluated_sets, size
from gptscale.tracking.provenance import recorded_starts

TEMPLATE = Path(__file__).with_name("page.html")

MOST_RECORDS = 10_000
"""Training records of a run in the page, beside evaluations and events: more than a chart has pixels."""

REFRESH_S = 10
"""How often a live page asks for news."""


def write_page(run_dirs: Sequence[Path], path: Path) -> Path:
    """Write the page of one or several runs.

    Raises TrainingError for a folder without measurements, and for a place that cannot be written.
    """
    page = render(page_data(run_dirs)).encode(errors="backslashreplace")  # what the log has of half surrogates
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, page)
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error.strerror}; name another file with --to") from None
    return path


def render(data: dict[str, Any]) -> str:
    """The page with its data and the plotting library inside."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    before, after = TEMPLATE.read_text(encoding="utf-8").split("__PLOTLY__")
    return before.replace("__DATA__", text) + _plotly() + after


def page_data(run_dirs: Sequence[Path], live_s: int | None = None) -> dict[str, Any]:
    """All that the page shows. live_s makes it ask for newer data every so many seconds."""
    names = _names(run_dirs)
    runs = [_run(path, name) for path, name in zip(run_dirs, names, strict=True)]
    return {
        "written": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "live_s": live_s,
        "charts": _charts(runs),
        "differences": list(_differences(run_dirs)),
        "runs": runs,
    }


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _names(run_dirs: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths where names are the same."""
    short = [path.resolve().name for path in run_dirs]
    return short if len(set(short)) == len(short) else [str(path) for path in run_dirs]


def _run(run_dir: Path, name: str) -> dict[str, Any]:
    records = read_log(run_dir / LOG_FILE)
    if not any("/loss" in key for record in records for key in record):
        raise TrainingError(f"{run_dir / LOG_FILE} holds no measurements; train first, or name another run folder")
    config = run_dir / "config.yaml"
    every = -(-len(records) // MOST_RECORDS)
    return {
        "name": name,
        "every": every,
        "records": plain(_thinned(records, every)),
        "events": sorted(_events(run_dir, records), key=lambda event: float(event["step"])),
        "samples": read_samples(run_dir / SAMPLES_FILE),
        "config": config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
    }


def _thinned(records: list[dict[str, float]], every: int) -> list[dict[str, float]]:
    """Of the training records one of so many, and the last; of the others all."""
    training = [number for number, record in enumerate(records) if "train/loss" in record and "val/loss" not in record]
    left_out = {*training} - {*training[::every], *training[-1:]}
    return [record for number, record in enumerate(records) if number not in left_out]


def _events(run_dir: Path, records: Sequence[dict[str, float]]) -> Iterator[dict[str, Any]]:
    """What happened to a run beside its steps: kind, step and a line of text."""
    starts = [start for start in recorded_starts(run_dir) if isinstance(start.get("from_step", 0), int)]
    anew = max((n for n, start in enumerate(starts) if start.get("from_step", 0) == 0), default=0)
    for start in starts[max(1, anew) :]:  # those before were of another history
        step = start.get("from_step", 0)
        text = f"{start.get('time', '')} from step {step} on {start.get('world', 1)} x {start.get('device', '?')}"
        yield {"kind": "resume", "step": step, "text": text}
    for record in records:
        if "val/loss" in record:
            yield {"kind": "evaluation", "step": record["step"], "text": f"validation loss {record['val/loss']:.4f}"}
        if {"checkpoint/step", "checkpoint/bytes", "checkpoint/durable_s"} <= record.keys():
            text = f"{size(record['checkpoint/bytes'])}, safe after {record['checkpoint/durable_s']:.2g} s"
            yield {"kind": "checkpoint", "step": record["checkpoint/step"], "text": text}
        if record.get("health/skipped_steps"):
            text = f"{record['health/skipped_steps']:.0f} steps skipped: gradients not finite"
            yield {"kind": "skipped", "step": record["step"], "text": text}
        if {"health/spike_step", "health/spike_loss", "health/spike_z"} <= record.keys():
            yield _spike(record)


def _spike(record: dict[str, float]) -> dict[str, Any]:
    loss, z, at = record["health/spike_loss"], record["health/spike_z"], record["health/spike_step"]
    text = f"loss {loss:.3f} at step {at:.0f}, {z:.1f} deviations above the median"
    if "health/skipped_samples" in record:
        text += f"; went back here and left out {record['health/skipped_samples']:.0f} samples"
        return {"kind": "rollback", "step": record["step"], "text": text}
    return {"kind": "spike", "step": at, "text": text}


def _differences(run_dirs: Sequence[Path]) -> Iterator[list[str]]:
    """Each setting that is not the same in all runs, and its values."""
    found = [_settings(path) for path in run_dirs]
    for key in dict.fromkeys(key for its in found for key in its):
        values = [its.get(key) for its in found]
        if any(value != values[0] for value in values):
            yield [key, *("null" if value is None else str(value) for value in values)]


def _settings(run_dir: Path) -> dict[str, Any]:
    try:
        return settings(load_config(run_dir / "config.yaml"))
    except GptscaleError:
        return {}


def _of_many(runs: Sequence[dict[str, Any]]) -> bool:
    """Whether a run has more ranks than one, so that the speed of one is a curve of its own."""
    rates = ("train/tokens_per_s", "train/tokens_per_s_per_gpu")
    return any(record.get(rates[0]) != record.get(rates[1]) for run in runs for record in run["records"])


def _charts(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The charts in their order: name, title, curves as metric and label, and how they are drawn."""
    sets = dict.fromkeys(name for run in runs for record in run["records"] for name in evaluated_sets(record))

    def losses(metric: str) -> list[tuple[str, str]]:
        named = [(f"val/{name}/{metric}", name) for name in sets]
        fixed = (f"eval_train/{metric}", "training, fixed windows")
        return [(f"train/{metric}", "training"), (f"val/{metric}", "validation"), *named, fixed]

    norms = [("train/grad_norm", "last"), ("train/grad_norm_mean", "mean of the interval")]
    split = [("time/compute_s", "compute"), ("time/data_s", "waiting for data"), ("time/rest_s", "the rest")]
    rates = [("train/tokens_per_s", "")]
    if _of_many(runs):
        rates = [("train/tokens_per_s", "all ranks"), ("train/tokens_per_s_per_gpu", "one rank")]
    return [
        {"name": "loss", "title": "loss, nats per token", "curves": losses("loss"), "marked": True},
        {"name": "perplexity", "title": "perplexity", "curves": losses("perplexity"), "marked": True, "log": True},
        {"name": "lr", "title": "learning rate", "curves": [("train/lr", "")], "zero": True},
        {"name": "norm", "title": "gradient norm", "curves": norms, "log": True},
        {"name": "clipped", "title": "clipped steps", "curves": [("train/clipped_share", "")], "percent": True},
        {"name": "throughput", "title": "tokens per second", "curves": rates, "zero": True},
        {"name": "mfu", "title": "MFU", "curves": [("train/mfu", "")], "zero": True, "percent": True},
        {"name": "split", "title": "seconds a step", "curves": split, "zero": True, "stacked": True},
        {"name": "memory", "title": "peak memory, bytes", "curves": [("memory/peak_bytes", "")], "zero": True},
        {"name": "scale", "title": "fp16 loss scale", "curves": [("train/loss_scale", "")], "log": True},
    ]

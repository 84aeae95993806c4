"""A run's curves as PNG files, drawn from log.jsonl alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gptscale.errors import TrainingError
from gptscale.tracking.jsonl import LOG_FILE, read_log
from gptscale.tracking.lines import compact
from gptscale.tracking.tracker import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN = "#4477aa", "#cc3311", "#228833"


@dataclass(frozen=True)
class Curve:
    """One metric of the log and how it is drawn."""

    metric: str
    color: str
    label: str = ""
    marker: str = ""
    line: str = "-"
    width: float = 1.0


@dataclass(frozen=True)
class Chart:
    """One PNG: curves in one unit, against one or more axes of progress."""

    name: str
    unit: str
    curves: tuple[Curve, ...]
    against: tuple[str, ...] = ("step",)
    scale: Literal["linear", "from zero", "log when wide"] = "linear"


AXES = {"step": ("steps", 1), "tokens": ("tokens", 1), "epoch": ("epochs", 1), "time_s": ("hours", 3600)}
"""What a chart can be drawn against, and how much of the record's unit is one there."""

PANELS_IN_A_ROW = 2


def _losses(metric: str) -> tuple[Curve, ...]:
    return (
        Curve(f"train/{metric}", BLUE, "training, mean of the interval", width=0.8),
        Curve(f"val/{metric}", ORANGE, "validation", marker="o", width=1.4),
        Curve(f"eval_train/{metric}", GREEN, "training, fixed windows", marker="+", line="none"),
    )


_SPLIT = (
    Curve("time/compute_s", BLUE, "computing"),
    Curve("time/data_s", ORANGE, "waiting for data"),
    Curve("time/rest_s", GREEN, "the rest"),
)

CHARTS = (
    Chart("loss", "loss (nats per token)", _losses("loss"), against=tuple(AXES)),
    Chart("perplexity", "perplexity", _losses("perplexity"), against=tuple(AXES), scale="log when wide"),
    Chart("learning_rate", "learning rate", (Curve("train/lr", BLUE, width=1.6),), scale="from zero"),
    Chart("gradient_norm", "gradient norm", (Curve("train/grad_norm", BLUE),), scale="log when wide"),
    Chart("step_time", "seconds a step", _SPLIT, scale="from zero"),
    Chart("throughput", "tokens per second", (Curve("train/tokens_per_s", BLUE),), scale="from zero"),
    Chart("mfu", "share of the peak FLOP/s", (Curve("train/mfu", BLUE),), scale="from zero"),
)


def write_report(run_dir: Path) -> list[Path]:
    """Draw every chart the log has numbers for into run_dir/report and return the files.

    Raises TrainingError when there is nothing to draw, or the folder cannot be written.
    """
    records = read_log(run_dir / LOG_FILE)
    charts = [chart for chart in CHARTS if any(_points(records, "step", c.metric) for c in chart.curves)]
    if not charts:
        raise TrainingError(
            f"{run_dir / LOG_FILE} holds no measurements; train first (gptscale train CONFIG with "
            f"run.dir={run_dir}), or name another run folder"
        )
    folder = run_dir / "report"
    try:
        folder.mkdir(exist_ok=True)
        return [_write(chart, records, folder, title=run_dir.resolve().name) for chart in charts]
    except OSError as error:
        raise TrainingError(
            f"cannot write into {folder}: {error.strerror}; free some space, mend its permissions or move it, "
            "or use --live, which writes nothing"
        ) from None


def _write(chart: Chart, records: Sequence[Record], folder: Path, title: str) -> Path:
    path = folder / f"{chart.name}.png"
    _figure(chart, records, title).savefig(path, dpi=130)
    return path


def _figure(chart: Chart, records: Sequence[Record], title: str) -> "Figure":
    from matplotlib.figure import Figure  # no pyplot: nothing global is touched

    columns = min(len(chart.against), PANELS_IN_A_ROW)
    rows = math.ceil(len(chart.against) / columns)
    figure = Figure(figsize=(2.6 + 4.4 * columns, 4.4 * rows), layout="constrained")
    drawable = title.encode(errors="backslashreplace").decode()  # a folder's name need not be UTF-8
    figure.suptitle(drawable, fontsize=13, fontweight="bold", parse_math=False)  # nor are its $ formulas
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, progress in zip(panels.flat, chart.against, strict=True):
        _draw(axes, chart, records, progress)
    for axes in panels[:, 0]:
        axes.set_ylabel(chart.unit)
    if panels[0, -1].get_legend_handles_labels()[1]:
        panels[0, -1].legend(loc="upper right", frameon=False, fontsize=9)
    return figure


def _draw(axes: "Axes", chart: Chart, records: Sequence[Record], progress: str) -> None:
    """Fill one panel: every curve of the chart against one axis of progress."""
    heights: list[float] = []
    for curve in chart.curves:
        points = _points(records, progress, curve.metric)
        _plot(axes, curve, [x for x, _ in points], [y for _, y in points])
        heights += [y for _, y in points if math.isfinite(y)]
    _scale(axes, chart, heights)
    axes.set_xlabel(AXES[progress][0])
    axes.xaxis.set_major_formatter(lambda value, _: compact(value))
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _plot(axes: "Axes", curve: Curve, x: Sequence[float], y: Sequence[float]) -> None:
    if not x:
        return
    lone = "o" if len(x) == 1 else ""  # a line of one point would be invisible
    axes.plot(
        x,
        y,
        color=curve.color,
        label=curve.label,
        linestyle=curve.line,
        linewidth=curve.width,
        marker=curve.marker or lone,
        markersize=3 if curve.marker == "o" else 5,
    )


def _scale(axes: "Axes", chart: Chart, heights: Sequence[float]) -> None:
    """Set the vertical axis as the chart asks for the values it shows."""
    from matplotlib.ticker import LogLocator, NullLocator

    if chart.scale == "from zero":
        axes.set_ylim(bottom=0)
    elif chart.scale == "log when wide" and _is_wide(heights):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        return
    axes.yaxis.set_major_formatter(lambda value, _: compact(value))


def _points(records: Sequence[Record], progress: str, metric: str) -> list[tuple[float, float]]:
    """Every (progress, value) at which the metric was measured; nan leaves a gap in its curve."""
    unit = AXES[progress][1]
    return [(record[progress] / unit, record[metric]) for record in records if metric in record and progress in record]


def _is_wide(values: Sequence[float]) -> bool:
    """Whether the values span more than a factor of ten, so that a linear axis would hide the end."""
    return bool(values) and min(values) > 0 and max(values) > 10 * min(values)

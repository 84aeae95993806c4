import json
import math
from pathlib import Path

import pytest

from gptscale.errors import TrainingError
from gptscale.tracking.report import CHARTS, _figure, write_report


def write_log(run_dir: Path, records: list[dict[str, float | None]]) -> None:
    run_dir.mkdir()
    (run_dir / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def at(step: int) -> dict[str, float | None]:
    return {"step": step, "tokens": 64 * step, "epoch": step / 100, "time_s": float(step)}


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(head[16:20]), int.from_bytes(head[20:24])


def training(step: int, loss: float | None) -> dict[str, float | None]:
    perplexity = None if loss is None else math.exp(loss)
    return {
        **at(step),
        "train/loss": loss,
        "train/perplexity": perplexity,
        "train/lr": 1e-3,
        "train/grad_norm": 0.5,
        "train/tokens_per_s": 1e4,
        "time/compute_s": 0.5,
        "time/data_s": 0.1,
        "time/rest_s": 0.1,
    }


def evaluation(step: int, loss: float) -> dict[str, float | None]:
    return {**at(step), "val/loss": loss, "val/perplexity": math.exp(loss), "eval_train/loss": loss - 0.1}


def test_every_measured_quantity_becomes_a_png(tmp_path: Path) -> None:
    run_dir = tmp_path / "tiny"
    write_log(run_dir, [evaluation(0, 11.0), training(10, 5.0), training(20, None), evaluation(20, 4.0)])
    files = write_report(run_dir)
    assert [path.relative_to(run_dir).as_posix() for path in files] == [
        "report/loss.png",
        "report/perplexity.png",
        "report/learning_rate.png",
        "report/gradient_norm.png",
        "report/step_time.png",
        "report/throughput.png",
    ]
    sizes = [png_size(path) for path in files]
    # 130 dots per inch; two by two panels are 2.6 + 2 * 4.4 = 11.4 inches wide and 8.8 high, one is 7.0 by 4.4
    assert sizes == [(1482, 1144)] * 2 + [(910, 572)] * 4


def test_a_report_can_be_written_again(tmp_path: Path) -> None:
    write_log(tmp_path / "run", [training(10, 5.0)])
    assert write_report(tmp_path / "run") == write_report(tmp_path / "run")


def test_a_run_that_was_never_finite_has_a_report_too(tmp_path: Path) -> None:
    write_log(tmp_path / "run", [training(10, None), training(20, None)])
    assert len(write_report(tmp_path / "run")) == 6


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    write_log(tmp_path / "run", [training(10, 5.0)])
    (tmp_path / "run" / "report").write_text("")
    with pytest.raises(
        TrainingError,
        match=r"cannot write into .*report: File exists; free some space, mend its permissions or move it, or use --live",
    ):
        write_report(tmp_path / "run")


@pytest.mark.parametrize("records", [None, [], [at(0)]])
def test_a_run_without_measurements_is_refused(tmp_path: Path, records: list[dict[str, float | None]] | None) -> None:
    run_dir = tmp_path / "run"
    if records is not None:
        write_log(run_dir, records)
    with pytest.raises(TrainingError, match=r"log\.jsonl holds no measurements; train first \(gptscale train"):
        write_report(run_dir)


def test_a_chart_shows_each_metric_against_steps_tokens_epochs_and_time() -> None:
    records = [
        {"step": 0, "tokens": 0, "epoch": 0.0, "time_s": 0.0, "val/loss": 11.0},
        {"step": 10, "tokens": 640, "epoch": 0.1, "time_s": 900.0, "train/loss": 5.0},
        {"step": 20, "tokens": 1280, "epoch": 0.2, "time_s": 1800.0, "train/loss": 4.0},
        {"step": 20, "tokens": 1280, "epoch": 0.2, "time_s": 1800.0, "val/loss": 4.5},
    ]
    figure = _figure(CHARTS[0], records, "tiny")
    steps, *others = figure.axes
    assert [axes.get_xlabel() for axes in figure.axes] == ["steps", "tokens", "epochs", "hours"]
    assert steps.get_ylabel() == "loss (nats per token)"
    assert [line.get_xydata().tolist() for line in steps.lines] == [
        [[10, 5.0], [20, 4.0]],
        [[0, 11.0], [20, 4.5]],
    ]
    assert [list(axes.lines[0].get_xdata()) for axes in others] == [[640, 1280], [0.1, 0.2], [0.25, 0.5]]


@pytest.mark.parametrize(("steps", "dotted"), [((10,), True), ((10, 20), False)])
def test_a_curve_of_one_point_is_seen(steps: tuple[int, ...], dotted: bool) -> None:
    (axes,) = _figure(CHARTS[2], [training(step, 5.0) for step in steps], "tiny").axes
    assert [line.get_marker() == "o" for line in axes.lines] == [dotted]


@pytest.mark.parametrize(("last", "scale"), [(20.0, "log"), (200.0, "linear")])
def test_perplexity_is_drawn_in_decades_when_it_falls_by_more_than_ten(last: float, scale: str) -> None:
    records = [
        {**at(0), "val/perplexity": 300.0},
        {**at(10), "val/perplexity": last},
    ]
    figure = _figure(CHARTS[1], records, "tiny")
    assert {axes.get_yscale() for axes in figure.axes} == {scale}


def test_a_folders_name_is_no_formula(tmp_path: Path) -> None:
    run = tmp_path / "cost$1_of_$2\\q"
    write_log(run, [training(step, 3.0) for step in (1, 2)])
    assert write_report(run)

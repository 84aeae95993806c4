import sys
from pathlib import Path

import pytest

from gptscale.errors import TrainingError
from gptscale.tracking.tensorboard import TensorboardSink
from gptscale.tracking.tracker import Histogram


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last in ((0, 6), (4, 8)):  # killed at 6, gone on from 4
        sink = TensorboardSink(tmp_path, first)
        for step in range(first + 1, last + 1):
            sink.log({"step": step, "tokens": step * 64, "time_s": 1.0, "train/loss": 10.0 - step})
        sink.sample(last, "a", "b")
        sink.close()
    found = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True).Reload()
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(n, 10.0 - n) for n in range(1, 9)]
    assert set(found.Tags()["scalars"]) == {"tokens", "train/loss"}


@pytest.mark.filterwarnings("ignore")
def test_a_start_from_nothing_in_a_used_folder_has_a_step_0_of_its_own(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for loss in (5.0, 6.0):
        sink = TensorboardSink(tmp_path)
        sink.log({"step": 0, "tokens": 0, "time_s": 0.0, "val/loss": loss})
        sink.close()
    found = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True).Reload()
    assert [(e.step, e.value) for e in found.Scalars("val/loss")] == [(0, 6.0)]


@pytest.mark.filterwarnings("ignore")
def test_a_histogram_has_its_bins(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorboardSink(tmp_path)
    sink.histograms({"step": 3, "tokens": 192}, {"gradients/w": Histogram(-1.0, 1.0, [5, 0, 2, 1])})
    sink.close()
    (event,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Histograms("gradients/w")
    its = event.histogram_value
    assert (event.step, its.min, its.max, its.num) == (3, -1.0, 1.0, 8)
    filled = {limit: count for limit, count in zip(its.bucket_limit, its.bucket, strict=True) if count}
    assert filled == {-0.5: 5, 0.5: 2, 1.0: 1}  # each by the upper end of its bin


@pytest.mark.filterwarnings("ignore")
def test_a_sample_stands_under_its_prompt_and_begins_with_it(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorboardSink(tmp_path)
    sink.sample(7, "the", " cat\nsat")
    sink.sample(7, "a", " dog")
    sink.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = {tag: found.Tensors(tag)[0] for tag in found.Tags()["tensors"]}
    assert {tag: (event.step, event.tensor_proto.string_val[0]) for tag, event in shown.items()} == {
        "sample/'the'/text_summary": (7, b"    the cat\n    sat"),
        "sample/'a'/text_summary": (7, b"    a dog"),
    }


def test_a_missing_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match=r"tensorboard=true needs the tensorboard package: run pip install tensorb"):
        TensorboardSink(tmp_path)

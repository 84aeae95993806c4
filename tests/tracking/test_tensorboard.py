import sys
from pathlib import Path

import pytest

from gptscale.errors import TrainingError
from gptscale.tracking.tensorboard import TensorboardSink


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


def test_a_missing_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match=r"tensorboard=true needs the tensorboard package: run pip install tensorb"):
        TensorboardSink(tmp_path)

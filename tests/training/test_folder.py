"""Whose the run folder is, and what a start finds there of earlier ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptscale.checkpoint.fence import Fence
from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.disk import this_host
from gptscale.errors import TakenOverError, TrainingError
from gptscale.tracking.jsonl import JsonlSink, read_log, read_samples
from gptscale.training import folder, loop
from gptscale.training.folder import mark_done, open_folder, take_alone, take_over
from gptscale.training.run import train


def test_an_older_start_marks_no_run_as_done(tmp_path: Path) -> None:
    older = take_alone(tmp_path)
    mark_done(tmp_path, older, 4)
    take_alone(tmp_path)
    with pytest.raises(TrainingError, match=r"run.dir=.* was taken over by a later start"):
        mark_done(tmp_path, older, 5)
    assert (tmp_path / "done").read_text() == "4\n"


def test_what_a_killed_start_was_writing_is_taken_away(cfg: Config) -> None:
    half = (
        cfg.run.dir / f".log.jsonl.{this_host()}.99999999.00ff00ff.tmp"
    )  # of no process: beyond Linux' largest number
    half.parent.mkdir()
    half.write_bytes(b"half")
    open_folder(cfg, take_alone(cfg.run.dir), 0)
    assert not half.exists()


def test_a_start_that_ended_before_its_first_checkpoint_leaves_no_record(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any, **options: Any) -> Any:
        raise RuntimeError("killed")

    values["train"]["steps"] = 2
    cfg = parse_config(values)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(cfg)
    assert [r["step"] for r in read_log(cfg.run.dir / "log.jsonl")] == [0]
    assert train(cfg)
    assert [r["step"] for r in read_log(cfg.run.dir / "log.jsonl") if "val/loss" in r] == [0, 2]
    assert [sample["step"] for sample in read_samples(cfg.run.dir / "samples.jsonl")] == [0, 2]


def test_an_older_start_ends_with_its_step(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    train_step = loop.train_step

    def overtaken(*args: Any, step: int, **options: Any) -> Any:
        steps.append(step + 1)
        if step == 2:
            Fence.take(cfg.run.dir)
        return train_step(*args, step=step, **options)

    monkeypatch.setattr(loop, "train_step", overtaken)
    with pytest.raises(TakenOverError, match="was taken over by a later start"):
        train(cfg)
    assert steps == [1, 2, 3]  # and not all up to its next checkpoint


def test_an_older_start_that_wakes_up_before_its_first_step_writes_nothing(cfg: Config) -> None:
    older = take_alone(cfg.run.dir)
    open_folder(cfg, take_alone(cfg.run.dir), 0)
    sink = JsonlSink(cfg.run.dir)
    sink.log({"step": 1})
    sink.close()
    before = {path: path.read_bytes() for path in cfg.run.dir.iterdir() if path.is_file()}
    with pytest.raises(TrainingError, match="was taken over by a later start"):
        open_folder(cfg, older, 0)
    assert {path: path.read_bytes() for path in cfg.run.dir.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("has_its_own", [False, True])
def test_ranks_that_see_another_folder_under_the_same_path_end_before_their_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_its_own: bool
) -> None:
    class Elsewhere:
        """Rank 1 of two, on whose machine the folder of rank 0 is not."""

        is_first, rank = False, 1

        def agree(self, work: Callable[[], Any]) -> Any:
            return work()

        def gather(self, value: Any) -> list[Any]:
            return [(1, "no job, process 7 on node0\n"), value]

    if has_its_own:  # of a start in which this machine had rank 0
        take_alone(tmp_path)
    monkeypatch.setattr(folder, "SEEN_S", 0.0)
    with pytest.raises(TrainingError, match=r"rank 1 does not see run.dir=.* put it on a disk that all machines see"):
        take_over(tmp_path, Elsewhere())  # type: ignore[arg-type]


def test_the_place_of_checkpoints_is_there_before_any_other_rank_looks(tmp_path: Path) -> None:
    class First:
        is_first, rank = True, 0

        def agree(self, work: Callable[[], Any]) -> Any:
            return work()

        def gather(self, value: Any) -> list[Any]:
            assert (tmp_path / "checkpoints").is_dir()  # the others go on from here
            return [value]

    take_over(tmp_path, First())  # type: ignore[arg-type]

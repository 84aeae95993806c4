"""What a resume may change, and what it refuses."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gptscale.checkpoint.imported import write_imported
from gptscale.checkpoint.layout import list_checkpoints, read_manifest, step_dir, write_manifest
from gptscale.checkpoint.store import Store
from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.data.loader import StepLoader
from gptscale.errors import CheckpointError, GptscaleError, TrainingError
from gptscale.model.gpt import GPTModel
from gptscale.runtime.engine import Engine
from gptscale.tracking.jsonl import read_log
from gptscale.training import loop
from gptscale.training.deadline import Deadline
from gptscale.training.look import Look
from gptscale.training.resume import _forget_best, check_goes_on
from gptscale.training.run import train
from gptscale.training.state import Best, TrainState
from gptscale.training.trace import trace_step


def changed(values: dict[str, Any], **sections: dict[str, Any]) -> Config:
    return parse_config({**values, **{name: {**values.get(name, {}), **change} for name, change in sections.items()}})


@pytest.fixture
def trained(values: dict[str, Any]) -> dict[str, Any]:
    """A run of 6 steps of 8 samples, with a checkpoint."""
    values["sample"]["prompts"] = []
    train(changed(values, train={"steps": 6}))
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train": {"tokens_per_step": 128}},
            r"train.tokens_per_step=256, not 128; set it back, allow it with resume.a",
        ),
        ({"data": {"tokenizer": "gpt2"}, "model": {"vocab_size": 50257}}, r"tokenizer"),
        ({"model": {"n_layers": 3}}, r"was started with model.n_layers=2, not 3; set it back, or start a new run"),
        ({"run": {"seed": 12}}, r"was started with run.seed=11, not 12; set it back"),
        (
            {"data": {"shuffle_block_samples": 8}},
            r"was started with data.shuffle_block_samples=None, not 8; set it back, or",
        ),
        ({"data": {"stride": 16}}, r"was started with data.stride=32, not 16; set it back, or"),
        ({"optim": {"name": "muon"}}, r"was started with optim.name=adamw, not muon; set it back"),
    ],
)
def test_another_run_is_refused_in_one_line(
    trained: dict[str, Any], change: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(GptscaleError, match=message) as caught:
        train(changed(trained, **{"train": {"steps": 8}, **change}))
    assert "\n" not in str(caught.value)


def test_another_corpus_is_refused(trained: dict[str, Any], tmp_path: Path) -> None:
    from gptscale.data.prepare import prepare

    (tmp_path / "other.txt").write_text("something else " * 500)
    other = {"dir": str(tmp_path / "other"), "source": {"path": str(tmp_path / "other.txt")}}
    cfg = changed(trained, data=other, train={"steps": 8})
    prepare(cfg, say=lambda line: None)
    with pytest.raises(CheckpointError, match=r"was trained on data \w{12}, but data.dir=.*other holds \w{12}; point"):
        train(cfg)


def test_the_record_of_a_finished_run_is_not_begun_anew_without_a_word(trained: dict[str, Any]) -> None:
    cfg = changed(trained, train={"steps": 6})
    record = read_log(cfg.run.dir / "log.jsonl")
    shutil.rmtree(cfg.run.dir / "checkpoints")
    with pytest.raises(
        TrainingError, match=r"none of its checkpoints; put them back, choose another run.dir, or remove"
    ):
        train(cfg)
    assert read_log(cfg.run.dir / "log.jsonl") == record
    (cfg.run.dir / "done").unlink()
    assert train(cfg)


def test_imported_weights_in_a_run_folder_are_no_run(values: dict[str, Any]) -> None:
    cfg = changed(values)
    model = GPTModel(cfg.model, seed=1)
    folder = step_dir(cfg.run.dir, 0)
    folder.mkdir(parents=True)
    write_imported(folder, cfg, ((name, p.detach()) for name, p in model.named_parameters()))
    with pytest.raises(CheckpointError, match=r"step-00000000 holds weights and no training .* with model.init_from"):
        train(cfg)


def test_rate_length_logging_and_precision_may_change(trained: dict[str, Any]) -> None:
    cfg = changed(trained, train={"steps": 8, "log_every_steps": 2, "precision": "bf16"}, optim={"lr_peak": 5e-3})
    assert train(cfg)


def test_a_run_that_is_made_shorter_than_it_is_has_ended(
    trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = changed(trained, train={"steps": 4})
    record = read_log(cfg.run.dir / "log.jsonl")
    assert train(cfg)
    assert "is finished: step 6 of 4; a longer train.* goes on\n" in capsys.readouterr().out
    assert read_log(cfg.run.dir / "log.jsonl") == record


def test_another_batch_size_begins_a_segment_where_the_samples_are(
    trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    read_step = StepLoader._read_step

    def note(loader: StepLoader, step: int) -> Any:
        batches = read_step(loader, step)
        read.extend(batch.first_position for batch in batches)
        return batches

    monkeypatch.setattr(StepLoader, "_read_step", note)
    cfg = changed(trained, train={"steps": 9, "tokens_per_step": 128}, resume={"allow": ["tokens_per_step"]})
    assert train(cfg)
    # 6 steps of 8 samples, then 3 of 4
    assert read == [48, 52, 56]
    ledger = read_manifest(list_checkpoints(cfg.run.dir)[0]).ledger
    assert ledger["samples"] == 60
    assert ledger["segments"] == [
        {"step": 0, "samples": 0, "tokens_per_step": 256},
        {"step": 6, "samples": 48, "tokens_per_step": 128},
    ]
    tokens = [r["tokens"] for r in read_log(cfg.run.dir / "log.jsonl") if "train/loss" in r]
    assert tokens == [*np.arange(256, 6 * 256 + 1, 256), 1664, 1792, 1920]
    # once begun, it goes on as any other run, also without the permission
    assert train(changed(trained, train={"steps": 10, "tokens_per_step": 128}))
    assert read_manifest(list_checkpoints(cfg.run.dir)[0]).ledger["samples"] == 64


def test_a_length_in_tokens_counts_those_of_all_segments(trained: dict[str, Any]) -> None:
    # 1,536 tokens are done; 600 more are 4 steps of 128
    train_section = {"steps": None, "tokens": 1536 + 600, "tokens_per_step": 128}
    cfg = changed(trained, train=train_section, resume={"allow": ["tokens_per_step"]})
    assert train(cfg)
    assert read_manifest(list_checkpoints(cfg.run.dir)[0]).step == 10


def test_warmup_and_summary_know_the_earlier_segments(
    trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    # 1,536 tokens are done, in 6 steps; 1,024 more are 2 steps of 512. In steps of 512 all would be 5.
    changes = {"train": {"steps": None, "tokens": 2560, "tokens_per_step": 512}, "optim": {"warmup_steps": 5}}
    cfg = changed(trained, **changes, resume={"allow": ["tokens_per_step"]})
    assert train(cfg)
    assert read_manifest(list_checkpoints(cfg.run.dir)[0]).step == 8
    assert "run: 8 steps of 512 tokens = 2,560 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change", [{"run": {"seed": 5}}, {"model": {"n_layers": 3}}, {"train": {"tokens_per_step": 128}}]
)
def test_a_start_of_another_run_leaves_one_that_is_under_way_alone(trained: dict[str, Any], change: Any) -> None:
    fence = sorted((Path(trained["run"]["dir"]) / "fence").iterdir())
    with pytest.raises(TrainingError, match="was started with"):
        train(changed(trained, **change))
    assert sorted((Path(trained["run"]["dir"]) / "fence").iterdir()) == fence  # else that one would end


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_stop_before_the_first_update_leaves_no_checkpoint_and_the_run_can_go_on(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    values["sample"]["prompts"] = []
    cfg = changed(values, train={"steps": 6}, optim={"name": name}, run={"stop_after": "60s"})
    step = loop.train_step

    def not_finite(engine: Engine, *args: Any, **options: Any) -> Any:
        for p in engine.bare_model.parameters():
            p.register_hook(lambda grad: grad * math.inf)
        return step(engine, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", not_finite)
        patch.setattr(Deadline, "near", lambda deadline, save_s, **what: len(asked.append(None) or asked) > 3)
        asked: list[None] = []
        assert not train(cfg)
    assert list_checkpoints(cfg.run.dir) == []
    assert train(cfg)
    assert read_manifest(list_checkpoints(cfg.run.dir)[0]).step == 6


def test_a_resume_lists_the_settings_that_changed(trained: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    other = {"train": {"steps": 7}, "optim": {"beta1": 0.5}, "eval": {"every_steps": 5}, "checkpoint": {"keep": 2}}
    train(changed(trained, **other))
    said = "train.steps 6 -> 7, optim.beta1 0.9 -> 0.5, eval.every_steps 10 -> 5, checkpoint.keep 3 -> 2\n"
    assert f"changed since then: {said}" in capsys.readouterr().out
    train(changed(trained, **other))
    assert "changed since" not in capsys.readouterr().out


def test_a_strict_resume_refuses_a_broken_newest_checkpoint(trained: dict[str, Any]) -> None:
    train(changed(trained, train={"steps": 8}))
    newest = list_checkpoints(Path(trained["run"]["dir"]))[0]
    next(newest.glob("part-*")).unlink()
    with pytest.raises(CheckpointError, match=r"resume.strict refuses to pass over a bad checkpoint: .* is missing"):
        train(parse_config({**trained, "resume": "strict"}))
    assert train(changed(trained))


def test_the_best_checkpoint_is_named_and_kept(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([4.0, 3.0, 2.5, 2.0, 2.25, 2.75, 2.5])  # before training, and after every second step
    monkeypatch.setattr(Look, "evaluate", lambda look: {"val/loss": next(losses)})
    values["sample"]["prompts"] = []
    cfg = changed(values, train={"steps": 12}, eval={"every_steps": 2}, checkpoint={"every_steps": 2, "keep": 1})
    assert train(cfg)
    newest, *others = list_checkpoints(cfg.run.dir)
    assert read_manifest(newest).ledger["best"] == {"step": 6, "val_loss": 2.0}
    assert [p.name for p in (newest, *others)] == ["step-00000012", "step-00000006"]


def test_a_checkpoint_has_the_rate_of_its_last_update(values: dict[str, Any]) -> None:
    values["sample"]["prompts"] = []
    assert train(changed(values, train={"steps": 6}, checkpoint={"every_steps": 2}))
    # one step of warmup, then from the peak at the second update to the floor at the sixth, half a cosine: the fourth
    # is half way
    folder = Path(values["run"]["dir"])
    rates = {step: read_manifest(step_dir(folder, step)).ledger["lr"] for step in (2, 4, 6)}
    assert rates == {2: pytest.approx(1e-2), 4: pytest.approx(5.5e-3), 6: pytest.approx(1e-3)}
    told = {r["step"]: r["train/lr"] for r in read_log(folder / "log.jsonl") if "train/lr" in r}
    assert {step: told[step] for step in rates} == rates  # and so has a record


def test_the_time_of_a_run_goes_on_where_its_checkpoint_left_off(trained: dict[str, Any]) -> None:
    run_dir = Path(trained["run"]["dir"])
    saved_at = read_manifest(list_checkpoints(run_dir)[0]).ledger["time_s"]
    assert saved_at > 0
    assert train(changed(trained, train={"steps": 8}))
    times = {r["step"]: r["time_s"] for r in read_log(run_dir / "log.jsonl") if "train/loss" in r}
    assert list(times.values()) == sorted(times.values())
    assert times[6] <= saved_at <= times[7]


def test_the_record_says_what_a_checkpoint_cost(trained: dict[str, Any]) -> None:
    found = [r for r in read_log(Path(trained["run"]["dir"]) / "log.jsonl") if "checkpoint/step" in r]
    assert [r["checkpoint/step"] for r in found] == [6]
    part = next(list_checkpoints(Path(trained["run"]["dir"]))[0].glob("part-*"))
    assert found[0]["checkpoint/bytes"] == part.stat().st_size
    assert 0 < found[0]["checkpoint/stall_s"] < found[0]["checkpoint/durable_s"]


def test_a_run_that_is_older_than_a_setting_has_its_default(trained: dict[str, Any]) -> None:
    cfg = changed(trained, train={"steps": 7})
    newest = list_checkpoints(cfg.run.dir)[0]
    manifest = read_manifest(newest)
    del manifest.config["optim"]["name"], manifest.config["model"]["gelu"]
    manifest.config["train"]["what_there_is_no_more"] = True
    write_manifest(newest, manifest)
    assert train(cfg)


def test_a_trace_knows_the_segments(trained: dict[str, Any]) -> None:
    length = {"steps": None, "tokens": 6 * 256 + 2 * 128, "tokens_per_step": 128}
    cfg = changed(trained, train=length, resume={"allow": ["tokens_per_step"]})
    assert train(cfg)
    with pytest.raises(TrainingError, match=r"--step=9 is behind the last step of .*; give a step from 1 to 8"):
        trace_step(cfg.run.dir, 9)
    # 6 steps of 8 samples, then 2 of 4
    found = {step: [sample.position for sample in trace_step(cfg.run.dir, step)] for step in (1, 6, 7, 8)}
    assert found == {1: [*range(8)], 6: [*range(40, 48)], 7: [*range(48, 52)], 8: [*range(52, 56)]}


def test_a_start_on_another_corpus_leaves_a_run_that_is_under_way_alone(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    from gptscale.data.prepare import prepare

    (tmp_path / "other.txt").write_text("something else " * 500)
    other = {"dir": str(tmp_path / "other"), "source": {"path": str(tmp_path / "other.txt")}}
    cfg = changed(trained, data=other, train={"steps": 8})
    prepare(cfg, say=lambda line: None)
    fence = sorted((cfg.run.dir / "fence").iterdir())
    with pytest.raises(CheckpointError, match="was trained on data"):
        train(cfg)
    assert sorted((cfg.run.dir / "fence").iterdir()) == fence  # else that one would end


def test_a_newest_manifest_that_is_damaged_gives_way_to_the_one_before(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    values["sample"]["prompts"] = []
    assert train(changed(values, train={"steps": 6}, checkpoint={"every_steps": 4}))
    newest, before = list_checkpoints(Path(values["run"]["dir"]))
    (newest / "manifest.json").write_text("{")
    assert train(changed(values, train={"steps": 7}))
    assert f"going on from {before}\n" in capsys.readouterr().out


def test_only_a_schedule_that_was_changed_makes_a_jump(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    values["sample"]["prompts"] = []

    def jumps(steps: int, **optim: float) -> bool:
        capsys.readouterr()
        assert train(changed(values, train={"steps": steps}, optim={"decay_steps": 20, **optim}))
        said = capsys.readouterr().out
        assert ("; optim.decay_steps=20 keeps the schedule" in said) == ("the learning rate jumps" in said)
        return "the learning rate jumps" in said

    assert not jumps(6)
    assert not jumps(7)  # though the rate of a step is several percent below that of the one before
    assert not jumps(7, lr_peak=2e-2)  # no step is left that would have it
    assert jumps(8, lr_peak=2e-2)
    assert jumps(9, lr_peak=2.1e-2)  # by nearly 5 percent
    assert not jumps(10, lr_peak=2.11e-2)  # by half a percent


def test_where_the_first_weights_came_from_and_how_the_size_was_said_may_change(trained: dict[str, Any]) -> None:
    cfg = changed(trained, train={"steps": 7})
    newest = list_checkpoints(cfg.run.dir)[0]
    manifest = read_manifest(newest)
    manifest.config["model"] |= {"preset": "124M", "init": "torch", "init_from": "a folder that is gone"}
    write_manifest(newest, manifest)
    check_goes_on(cfg, manifest.data_fingerprint)


def test_dropout_may_change(trained: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert train(changed(trained, train={"steps": 7}, model={"drop_rate": 0.0}))
    assert "changed since then: model.drop_rate 0.1 -> 0.0, train.steps 6 -> 7\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"eval": {"sequences": 3}}, "its loss is over other windows than eval.sequences asks for now"),
        ({}, "it is gone"),
    ],
)
def test_a_best_that_cannot_be_compared_or_is_gone_is_looked_for_anew(
    trained: dict[str, Any], capsys: pytest.CaptureFixture[str], change: dict[str, Any], why: str
) -> None:
    folder = Path(trained["run"]["dir"])
    newest = list_checkpoints(folder)[0]
    manifest = read_manifest(newest)
    best = {"step": manifest.step if change else 1, "val_loss": 1e-9}
    write_manifest(newest, replace(manifest, ledger={**manifest.ledger, "best": best}))
    assert train(changed(trained, train={"steps": 8}, **change))
    there = "" if change else f"; step {manifest.step} does"  # the one that is gone on from
    assert f"step {best['step']} no longer counts as the best: {why}{there}\n" in capsys.readouterr().out
    found = read_manifest(list_checkpoints(folder)[0]).ledger["best"]
    assert found is not None
    assert found["val_loss"] > 1


def test_the_first_rank_says_whether_the_best_is_gone(trained: dict[str, Any]) -> None:
    cfg = changed(trained)
    manifest = read_manifest(list_checkpoints(cfg.run.dir)[0])
    state = TrainState(best=Best(1, 2.5))
    engine: Any = SimpleNamespace(gather=lambda gone: [False, gone])  # this is the second rank
    _forget_best(cfg, manifest, engine, state)
    assert state.best == Best(1, 2.5)


def test_the_best_that_is_there_has_the_lowest_loss_of_those_that_can_be_read(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    values["sample"]["prompts"] = []
    assert train(changed(values, train={"steps": 8}, checkpoint={"every_steps": 2, "keep": None}))
    found = list_checkpoints(Path(values["run"]["dir"]))
    for path, loss in zip(found, (3.0, 2.5, None, 2.0), strict=True):  # of steps 8, 6, 4 and 2
        manifest = read_manifest(path)
        ledger = {**manifest.ledger, "val_loss": loss, "best": {"step": 1, "val_loss": 1e-9}}
        write_manifest(path, replace(manifest, ledger=ledger))
    (found[-1] / "manifest.json").write_text("{")
    assert train(changed(values, train={"steps": 9}))
    assert "step 1 no longer counts as the best: it is gone; step 6 does\n" in capsys.readouterr().out


def test_a_best_that_nobody_asked_to_keep_stays_what_it_is(trained: dict[str, Any]) -> None:
    folder = Path(trained["run"]["dir"])
    newest = list_checkpoints(folder)[0]
    manifest = read_manifest(newest)
    best = {"step": 1, "val_loss": 1e-9}
    write_manifest(newest, replace(manifest, ledger={**manifest.ledger, "best": best}))
    assert train(changed(trained, train={"steps": 8}, checkpoint={"keep_best": False}))
    assert read_manifest(list_checkpoints(folder)[0]).ledger["best"] == best


def test_another_tokenizer_is_told_before_the_corpus_that_it_made(trained: dict[str, Any]) -> None:
    cfg = changed(trained, data={"tokenizer": "gpt2"}, model={"vocab_size": 50257})
    with pytest.raises(TrainingError, match="was started with data.tokenizer=bytes, not gpt2; set it back"):
        check_goes_on(cfg, "f" * 64)


def test_another_context_is_told_as_such(trained: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="was started with model.context_length=32, not 16"):
        train(changed(trained, train={"steps": 7}, model={"context_length": 16}))


def test_a_stride_that_is_the_contexts_length_may_be_said(trained: dict[str, Any]) -> None:
    assert trained["data"].get("stride") is None
    assert train(changed(trained, train={"steps": 7}, data={"stride": 32}))


def test_a_lower_keep_makes_room_before_the_disk_is_asked(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values["sample"]["prompts"] = []
    train(changed(values, train={"steps": 6}, checkpoint={"every_steps": 2}))
    left: list[list[str]] = []
    monkeypatch.setattr(
        Store, "check_room", lambda store, _: left.append([path.name for path in list_checkpoints(store.run_dir)])
    )
    train(changed(values, train={"steps": 7}, checkpoint={"keep": 1, "keep_best": False}))
    assert left == [["step-00000006"]]

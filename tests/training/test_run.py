import gc
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptscale.checkpoint.layout import list_checkpoints, read_manifest
from gptscale.checkpoint.store import Store
from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.errors import TrainingError
from gptscale.model.gpt import GPTModel
from gptscale.runtime import compiled
from gptscale.tracking.tracker import Tracker
from gptscale.training import look, run, summary
from gptscale.training.folder import take_alone


def test_the_collector_leaves_alone_what_a_run_begins_with(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = []
    fit = run.fit

    def counting(*args: Any) -> bool:
        frozen.append(gc.get_freeze_count())
        return fit(*args)

    monkeypatch.setattr(run, "fit", counting)
    assert run.train(cfg)
    assert frozen[0] > 0
    assert gc.get_freeze_count() == 0  # and what comes after the run is collected as before


@pytest.mark.parametrize(
    ("settings", "in_hardware", "advice"),
    [
        ({}, False, []),
        ({"train": {"precision": "bf16"}}, False, ["; use train.precision=fp32 here"]),
        ({"optim": {"name": "muon"}}, False, []),  # which is in fp32 there
        ({"train": {"precision": "bf16"}, "optim": {"name": "muon"}}, True, []),
    ],
)
def test_what_is_slow_on_a_cpu_without_bf16_is_said_at_the_start(
    settings: dict[str, dict[str, Any]],
    in_hardware: bool,
    advice: list[str],
    values: dict[str, Any],
    cfg: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(summary, "computes_bf16", lambda device: in_hardware)
    values["train"]["steps"] = 2
    for section, changes in settings.items():
        values[section] |= changes
    assert run.train(parse_config(values))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("slow: ")]
    assert len(said) == len(advice)
    for line, words in zip(said, advice, strict=True):
        assert line.startswith("slow: this CPU has no bf16 in hardware" + words)


def test_no_rank_draws_a_whole_model_at_its_start(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(model: GPTModel, seed: int) -> None:
        raise AssertionError("a rank is to draw what it holds")

    expected = GPTModel(cfg.model, cfg.run.seed)
    monkeypatch.setattr(GPTModel, "init_weights", whole)
    of_start: dict[str, torch.Tensor] = {}

    def fit(of: Any, state: Any) -> bool:
        of_start.update({name: p.detach().clone() for name, p in of.engine.bare_model.named_parameters()})
        return False

    monkeypatch.setattr(run, "fit", fit)
    run.train(cfg)
    assert of_start.keys() == dict(expected.named_parameters()).keys()
    assert all(torch.equal(of_start[name], p) for name, p in expected.named_parameters())


def test_samples_are_drawn_as_the_config_says_and_are_those_of_the_first_rank(
    values: dict[str, Any], cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def generate_text(*args: Any, **options: Any) -> list[str]:
        given.update(options)
        return ["the end"]

    monkeypatch.setattr(look, "generate_text", generate_text)
    said = {"max_new_tokens": 9, "temperature": 0.7, "top_k": 5, "top_p": 0.75}
    values["sample"] |= said
    cfg = parse_config(values)
    engine = SimpleNamespace(evaluating=nullcontext, gather=lambda drawn: [[7, 8], drawn])
    mine = look.Look.__new__(look.Look)
    vars(mine).update(_cfg=cfg, _engine=engine, _model=None, _tokenizer=None)
    assert list(mine.samples(3)) == [("the ", "end")]
    assert given["agreed"]([5, 6]) == [7, 8]
    assert {name: given[name] for name in said} == said


def test_a_compiled_start_keeps_its_work_and_mends_what_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    half = Path("cache/chalf.so")
    monkeypatch.setattr(compiled, "keep_in_users_cache", lambda: done.append("kept"))
    monkeypatch.setattr(compiled, "keep_traced_graphs", lambda: done.append("traced"))
    monkeypatch.setattr(compiled, "remove_halves", lambda: [half])
    monkeypatch.setattr(compiled, "check_compiler", lambda device: done.append(f"a compiler for {device}"))
    compiled.find_compiled(SimpleNamespace(agree=lambda work: work(), say=done.append, device="cpu"))  # type: ignore[arg-type]
    mended = f"removed {half}: a compiler was killed while it wrote it; it is compiled again"
    assert done == ["kept", "traced", "a compiler for cpu", mended]


def test_a_run_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        TrainingError, match=r"run.dir=.*/file/run cannot be written: Not a directory; free space, mend"
    ):
        take_alone(tmp_path / "file" / "run")


def test_only_the_milestones_and_the_newest_stay_where_that_is_asked(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([4.0, 3.0, 2.5, 2.0, 2.25, 2.75, 2.5])  # the best is that of step 6
    monkeypatch.setattr(look.Look, "evaluate", lambda look: {"val/loss": next(losses)})
    values["train"]["steps"] = 12
    values["eval"]["every_steps"] = 2
    values["sample"]["prompts"] = []
    values["checkpoint"] = {"every_steps": 2, "keep": 1, "keep_every_steps": 4, "keep_best": False}
    cfg = parse_config(values)
    assert run.train(cfg)
    assert [read_manifest(path).step for path in list_checkpoints(cfg.run.dir)] == [12, 8, 4]


def test_every_checkpoint_comes_after_a_record_that_is_on_disk(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def noted(owner: type, name: str) -> None:
        function = getattr(owner, name)

        def note(*args: Any, **options: Any) -> Any:
            events.append(name)
            return function(*args, **options)

        monkeypatch.setattr(owner, name, note)

    for owner, name in ((Tracker, "log"), (Tracker, "flush"), (Store, "save")):
        noted(owner, name)
    values["train"]["steps"] = 6
    values["checkpoint"]["every_steps"] = 2
    assert run.train(parse_config(values))
    saves = [number for number, event in enumerate(events) if event == "save"]
    assert len(saves) == 3
    assert [events[number - 1] for number in saves] == ["flush"] * 3


@pytest.mark.parametrize("on", [True, False])
def test_what_the_config_says_of_tf32_recomputing_and_saving_beside_training_is_done(
    on: bool, values: dict[str, Any], cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def fit(of: Any, state: Any) -> bool:
        given["recompute"] = of.engine.bare_model.recompute
        return False

    def store(*args: Any, background: bool, **rest: Any) -> Store:
        given["background"] = background
        return Store(*args, background=background, **rest)

    monkeypatch.setattr(run, "fit", fit)
    monkeypatch.setattr(run, "Store", store)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda kind: given.update(products=kind))
    values["train"] |= {"tf32": on, "activation_checkpointing": on}
    values["checkpoint"]["background"] = on
    run.train(parse_config(values))
    assert given == {"recompute": on, "background": on, "products": "high" if on else "highest"}

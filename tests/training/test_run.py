import gc
import signal
import threading
import time
from concurrent.futures import wait
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptscale.checkpoint import store as store_module
from gptscale.checkpoint.fence import Fence
from gptscale.checkpoint.layout import list_checkpoints, read_manifest
from gptscale.checkpoint.store import Store
from gptscale.config.load import parse_config
from gptscale.config.schema import CheckpointConfig, Config
from gptscale.data.corpora import open_corpora
from gptscale.errors import CheckpointError, RankError, TrainingError
from gptscale.evaluation.loss import Evaluation
from gptscale.model.gpt import GPTModel
from gptscale.runtime import compiled
from gptscale.runtime.engine import Engine
from gptscale.tracking.jsonl import JsonlSink, read_log
from gptscale.tracking.tracker import Tracker
from gptscale.training import initial, look, loop, meter, run, summary
from gptscale.training.folder import take_alone
from gptscale.training.health import Rollback, Spike
from gptscale.training.look import Look
from gptscale.training.plan import Segment
from gptscale.training.run import train
from gptscale.training.save_cost import SaveCost
from gptscale.training.state import TrainState


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
    seeds = [given["seed"] for step in (3, 4, 3) if list(mine.samples(step))]
    assert seeds[0] == seeds[2] != seeds[1]  # each step has draws of its own, the same ones again after a resume


def test_each_rank_evaluates_windows_of_its_own(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    firsts: list[list[int]] = []
    monkeypatch.setattr(
        look, "evaluate_loss", lambda _, batches, *rest: firsts.append([b.first_position for b in batches])
    )
    about = {"world": 2, "evaluating": nullcontext, "device": None, "sum_over_ranks": None}
    for rank in range(2):
        mine = Look.__new__(Look)
        vars(mine).update(_cfg=cfg, _engine=SimpleNamespace(rank=rank, **about), _token_bytes=None)
        mine._over_one(open_corpora(cfg).val, 16)
    assert firsts == [[0, 8], [4, 12]]  # in micro-batches of 4


def test_the_loss_on_training_windows_counts_each_corpus_by_its_share(values: dict[str, Any]) -> None:
    found = {"val": [Evaluation(20.0, 10, 10), Evaluation(40.0, 10, 10)]}  # 2 and 4 nats per token
    found["train"] = [Evaluation(10.0, 10, 10), Evaluation(30.0, 10, 10)]  # 1 and 3
    mine = Look.__new__(Look)
    corpora = SimpleNamespace(names=("a", "b"), mixture=SimpleNamespace(shares=(3, 1)))
    vars(mine).update(_cfg=parse_config(values), _corpora=corpora, _sets={}, _over=lambda split, count: found[split])
    measured = mine.evaluate()
    assert measured["val/loss"] == pytest.approx((3 * 2 + 4) / 4)
    assert measured["eval_train/loss"] == pytest.approx((3 * 1 + 3) / 4)


def test_a_compiled_start_keeps_its_work_and_mends_what_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    half = Path("cache/chalf.so")
    monkeypatch.setattr(compiled, "keep_in_users_cache", lambda: done.append("kept"))
    monkeypatch.setattr(compiled, "keep_traced_graphs", lambda: done.append("traced"))
    monkeypatch.setattr(compiled, "seed_what_is_computed_again", lambda: done.append("seeded"))
    monkeypatch.setattr(compiled, "remove_halves", lambda: [half])
    monkeypatch.setattr(compiled, "check_compiler", lambda device: done.append(f"a compiler for {device}"))
    compiled.find_compiled(SimpleNamespace(agree=lambda work: work(), say=done.append, device="cpu"))  # type: ignore[arg-type]
    mended = f"removed {half}: a compiler was killed while it wrote it; it is compiled again"
    assert done == ["kept", "traced", "seeded", "a compiler for cpu", mended]


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

    def store(fence: Fence, ranks: Any, rules: CheckpointConfig, **rest: Any) -> Store:
        given["background"] = rules.background
        return Store(fence, ranks, rules, **rest)

    monkeypatch.setattr(run, "fit", fit)
    monkeypatch.setattr(run, "Store", store)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda kind: given.update(products=kind))
    values["train"] |= {"tf32": on, "activation_checkpointing": on}
    values["checkpoint"]["background"] = on
    run.train(parse_config(values))
    assert given == {"recompute": on, "background": on, "products": "high" if on else "highest"}


def test_a_record_counts_passes_over_the_samples(values: dict[str, Any]) -> None:
    values["train"]["steps"], values["sample"]["prompts"] = 3, []
    cfg = parse_config(values)
    assert train(cfg)
    samples = (len(open_corpora(cfg).train) - 1) // 32
    epochs = {r["step"]: r["epoch"] for r in read_log(cfg.run.dir / "log.jsonl")}
    assert epochs == {step: 8 * step / samples for step in range(4)}


@pytest.mark.parametrize("finished", [True, False])
def test_ctrl_c_at_the_last_step_is_no_interruption(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    def stopped(cfg: Config, stop: Any) -> bool:
        signal.raise_signal(signal.SIGINT)
        return finished

    monkeypatch.setattr(run, "_train_together", stopped)
    if finished:
        assert run.train(cfg)
    else:
        with pytest.raises(KeyboardInterrupt):
            run.train(cfg)


def test_the_last_steps_of_a_run_are_in_its_record(values: dict[str, Any]) -> None:
    values["train"] |= {"steps": 5, "log_every_steps": 2}
    values["sample"]["prompts"] = []
    cfg = parse_config(values)
    assert train(cfg)
    assert [r["step"] for r in read_log(cfg.run.dir / "log.jsonl") if "train/loss" in r] == [2, 4, 5]


def test_the_record_is_forced_to_disk_by_all_ranks_together_before_each_checkpoint_and_at_the_end(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    agree, together = Engine.agree, [False]

    def agreed(engine: Engine, work: Any) -> Any:
        together[0] = True
        try:
            return agree(engine, work)
        finally:
            together[0] = False

    def noted(owner: type, name: str) -> None:
        function = getattr(owner, name)

        def note(*args: Any, **options: Any) -> Any:
            events.append(f"{name} together" if together[0] else name)
            return function(*args, **options)

        monkeypatch.setattr(owner, name, note)

    monkeypatch.setattr(Engine, "agree", agreed)
    for owner, name in ((Tracker, "log"), (Tracker, "flush"), (Store, "save")):
        noted(owner, name)
    values["train"]["steps"], values["checkpoint"]["every_steps"] = 4, 2
    assert train(parse_config(values))
    saves = [number for number, event in enumerate(events) if event == "save"]
    assert len(saves) == 2
    assert [events[number - 1] for number in saves] == ["flush together"] * 2
    assert events[-2:] == ["log", "flush together"]  # what the last checkpoint cost, before the run is marked as done


def test_samples_are_written_without_dropout(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []
    generate = look.generate_text

    def noted(model: Any, *args: Any, **options: Any) -> Any:
        modes.append(model.training)
        return generate(model, *args, **options)

    monkeypatch.setattr(look, "generate_text", noted)
    values["train"]["steps"] = 2
    assert train(parse_config(values))
    assert modes == [False, False]


def test_a_save_is_taken_on_when_no_rank_is_at_work_on_it_any_more() -> None:
    taken_on: list[bool] = []
    run: Any = SimpleNamespace(
        meter=SimpleNamespace(waiting=nullcontext),
        loader=SimpleNamespace(next_step=list),
        tracker=SimpleNamespace(check=lambda: None),
        stop=SimpleNamespace(received=None),
        deadline=SimpleNamespace(near=lambda save_s, **what: False),
        save_cost=SimpleNamespace(longest_s=None),
        plan=SimpleNamespace(total_steps=1),
        store=SimpleNamespace(writing=False, settle=lambda: taken_on.append(True)),
    )
    for elsewhere in (True, False):
        run.engine = SimpleNamespace(
            is_first=False, any_rank=lambda *flags, elsewhere=elsewhere: (False, False, elsewhere)
        )
        assert loop._next_batches(run, TrainState()) == ([], False)
        assert bool(taken_on) == (not elsewhere)


def test_wandb_goes_on_from_the_step_and_is_hurried_by_a_scheduler_alone(
    cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(run, "wandb_beside", lambda *args, **facts: given.append((*args, facts)))
    stop, deadline = SimpleNamespace(received=None), SimpleNamespace(over=False)
    model = SimpleNamespace(num_parameters=lambda: 9)
    plan: Any = SimpleNamespace(total_steps=20, tokens_at=lambda step: 256 * step)
    start: Any = SimpleNamespace(cfg=cfg, model=model, stop=stop, deadline=deadline)
    run._open_wandb(start, plan, SimpleNamespace(step=5))  # type: ignore[arg-type]
    ((of, folder, step, is_urgent, facts),) = given
    assert (of, folder, step, facts) == (cfg, cfg.run.dir, 5, {"parameters": 9, "tokens": 5120})
    urgent = {}
    for stop.received in (None, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        urgent[stop.received] = is_urgent()
    assert urgent == {None: False, signal.SIGINT: False, signal.SIGTERM: True, signal.SIGUSR1: True}
    stop.received, deadline.over = None, True
    assert is_urgent()


def test_views_are_opened_at_the_step_and_told_after_the_record(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []

    class View:
        name, required = "view", False

        def __init__(self, *args: Any) -> None:
            opened.append(args)

    class Record(View):
        name, required = "log.jsonl", True

    sinks: list[list[str]] = []
    monkeypatch.setattr(run, "JsonlSink", Record)
    monkeypatch.setattr(run, "TensorboardSink", View)
    monkeypatch.setattr(run, "_open_wandb", lambda *args: View("W&B"))
    monkeypatch.setattr(run, "Tracker", lambda *of: sinks.append([sink.name for sink in of]))
    start: Any = SimpleNamespace(engine=SimpleNamespace(is_first=True), fence=SimpleNamespace(holds=lambda: True))
    plan: Any = SimpleNamespace(total_steps=20)
    state: Any = SimpleNamespace(step=5, time_s=1.0)
    for wanted in (True, False):
        start.cfg = parse_config({**values, "tensorboard": wanted})
        run._open_tracker(start, plan, state)
    folder = start.cfg.run.dir
    assert opened == [(folder,), ("W&B",), (folder, 5), (folder,), ("W&B",)]
    record, console = "log.jsonl", "the console"  # a view that begins anew reads what it is told in the run folder
    assert sinks == [[record, "view", "view", console], [record, "view", console]]


@pytest.mark.parametrize("error", [TrainingError("no more"), MemoryError("no more")])
def test_a_run_that_ends_by_an_error_keeps_the_checkpoint_that_is_on_its_way(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    write_part = store_module.write_part

    def slowly(*args: Any) -> Any:
        time.sleep(0.3)
        return write_part(*args)

    def step(*args: Any, step: int, **options: Any) -> Any:
        if step == 2:
            raise error
        return train_step(*args, step=step, **options)

    train_step = loop.train_step
    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(store_module, "write_part", slowly)
    values["checkpoint"]["every_steps"], values["sample"]["prompts"] = 2, []
    cfg = parse_config(values)
    with pytest.raises(type(error), match="no more"):
        train(cfg)
    assert [read_manifest(path).step for path in list_checkpoints(cfg.run.dir)] == [2]


def test_a_step_that_began_while_a_checkpoint_was_written_counts_as_beside_it(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stepping, beside, stores = threading.Event(), [], []
    write_part, save, train_step = store_module.write_part, Store.save, loop.train_step

    def late(*args: Any) -> Any:
        stepping.wait(20)
        return write_part(*args)

    def saved(store: Store, *args: Any) -> None:
        stores.append(store)
        save(store, *args)

    def step(*args: Any, step: int, **options: Any) -> Any:
        if step == 2:
            stepping.set()
            wait([stores[0]._save.work], timeout=20)  # it is no longer being written when the step ends
        return train_step(*args, step=step, **options)

    monkeypatch.setattr(store_module, "write_part", late)
    monkeypatch.setattr(Store, "save", saved)
    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(SaveCost, "add", lambda cost, span, *, writing: beside.append(writing))
    values["train"]["steps"], values["checkpoint"]["every_steps"], values["sample"]["prompts"] = 3, 2, []
    assert train(parse_config(values))
    assert beside == [False, False, True]


@pytest.mark.parametrize(
    ("error", "waits"),
    [(TrainingError("all"), True), (Rollback(Spike(3, 9.0, 9.0), []), True), (MemoryError("this one"), False)],
)
def test_ranks_wait_for_a_checkpoint_on_its_way_if_all_of_them_end(
    monkeypatch: pytest.MonkeyPatch, error: Exception, waits: bool
) -> None:
    waited: list[bool] = []
    of: Any = SimpleNamespace(
        engine=SimpleNamespace(device=torch.device("cpu"), world=2),
        store=SimpleNamespace(finish=lambda: waited.append(True)),
    )

    def ended(*args: Any) -> bool:
        raise error

    monkeypatch.setattr(loop, "_fit", ended)
    with pytest.raises(type(error)):
        loop.fit(of, TrainState())
    assert bool(waited) == waits  # after a failure of one rank the others would never come


def test_neither_evaluations_nor_checkpoints_count_as_training_time(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = [0.0]

    def now() -> float:
        passed[0] += 1e-6
        return passed[0]

    def hour(of: type, name: str) -> None:
        function = getattr(of, name)

        def slow(*args: Any, **options: Any) -> Any:
            passed[0] += 3600
            return function(*args, **options)

        monkeypatch.setattr(of, name, slow)

    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=now))
    hour(Look, "evaluate")
    hour(store_module.Store, "save")
    values["train"]["steps"], values["eval"]["every_steps"], values["checkpoint"]["every_steps"] = 4, 1, 1
    cfg = parse_config(values)
    assert train(cfg)
    assert max(r["time_s"] for r in read_log(cfg.run.dir / "log.jsonl")) < 1


def test_a_record_that_cannot_be_written_ends_the_run_at_the_next_step(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    train_step, log = loop.train_step, JsonlSink.log

    def full(sink: JsonlSink, record: Any) -> None:
        if record["step"] == 3:
            raise TrainingError("No space left on device")
        log(sink, record)

    def noted(*args: Any, step: int, **options: Any) -> Any:
        steps.append(step + 1)
        return train_step(*args, step=step, **options)

    monkeypatch.setattr(JsonlSink, "log", full)
    monkeypatch.setattr(loop, "train_step", noted)
    with pytest.raises(TrainingError, match="No space left on device"):
        train(parse_config(values))
    assert steps == [1, 2, 3]  # and not all up to the next checkpoint


def test_a_checkpoint_of_a_run_that_lacks_a_parameter_is_refused(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    owned = Engine.owned_fragments
    monkeypatch.setattr(Engine, "owned_fragments", lambda engine: owned(engine)[1:])
    values["train"]["steps"] = 2
    with pytest.raises(CheckpointError, match=r"tok_emb.weight was saved by no rank"):
        train(parse_config(values))


def test_what_is_left_is_told_by_the_pace_of_this_start(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    console = run.Console

    def noted(*args: Any, **options: Any) -> Any:
        given.append((args, options))
        return console(*args, **options)

    monkeypatch.setattr(run, "Console", noted)
    values["sample"]["prompts"] = []
    for steps in (2, 4):
        values["train"]["steps"] = steps
        assert train(parse_config(values))
    before = read_manifest(list_checkpoints(Path(values["run"]["dir"]))[1]).ledger["time_s"]
    assert given == [((2, 0), {"first_time_s": 0.0}), ((4, 2), {"first_time_s": before})]


@pytest.mark.parametrize("tokenizer", ["bytes", "gpt2", None])
def test_weights_of_another_tokenizer_are_said(
    tokenizer: str | None,
    cfg: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(cfg)
    found = replace(initial.open_weights(str(cfg.run.dir)), tokenizer=tokenizer)
    monkeypatch.setattr(initial, "open_weights", lambda name: found)
    values = cfg.model_dump(mode="json")
    values["run"]["dir"] = str(tmp_path / "second")
    values["model"]["init_from"] = str(cfg.run.dir)
    train(parse_config(values, "test"))
    said = " names the tokenizer gpt2, and this run has data.tokenizer=bytes" in capsys.readouterr().out
    assert said == (tokenizer == "gpt2")


def test_a_rank_that_lost_the_others_says_so_before_it_closes_what_may_take_long(
    cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    close = Tracker.close

    def slow(tracker: Tracker, failed: bool = False) -> None:
        done.append("closed")
        close(tracker, failed)

    def ended(*args: Any) -> bool:
        raise RuntimeError("[gloo] Timed out")

    monkeypatch.setattr(run, "fit", ended)
    monkeypatch.setattr(run, "note_lost", lambda error: done.append(str(error)))
    monkeypatch.setattr(Tracker, "close", slow)
    with pytest.raises(RankError, match="lost the other ranks"):
        train(cfg)
    assert done == ["[gloo] Timed out", "closed"]  # else the first to end would call it silent


@pytest.mark.parametrize("rank", [0, 1])
def test_what_the_newest_checkpoint_says_before_the_start_is_read_by_the_first_rank_alone(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    read: list[str] = []
    first = Segment(4, 16, cfg.train.tokens_per_step)

    def planned(cfg: Config, samples: int, world: int, segment: Segment) -> None:
        assert segment == first
        raise TrainingError("so far")

    monkeypatch.setattr(run, "launched_rank", lambda: rank)
    monkeypatch.setattr(run, "check_goes_on", lambda *args: read.append("settings"))
    monkeypatch.setattr(run, "likely_segment", lambda *args: (read.append("segment"), first)[1])
    monkeypatch.setattr(run.ranks, "gather", lambda mine: [first if rank else mine, None if rank == 0 else mine])
    monkeypatch.setattr(run, "make_plan", planned)
    with pytest.raises(TrainingError, match="so far"):
        train(cfg)
    assert read == (["settings", "segment"] if rank == 0 else [])  # not a thousand ranks at one file

import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gptscale.config.schema import Config
from gptscale.errors import TrainingError
from gptscale.tracking.jsonl import JsonlSink
from gptscale.tracking.tracker import Histogram, Tracker
from gptscale.tracking.wandb import open_wandb, wandb_beside
from tests.e2e.test_wandb import read_back


def config(mode: str, run_dir: Path) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": str(run_dir)},
            "data": {"dir": "corpus", "source": {"path": "text.txt"}},
            "train": {"steps": 2},
            "wandb": {"mode": mode, "project": "p", "entity": "team", "tags": ["a"]},
        }
    )


class FakeWandb(ModuleType):
    """The part of wandb that we use; it remembers the calls."""

    def __init__(self, logged_in: bool = True, broken: tuple[str, ...] = ()) -> None:
        super().__init__("wandb")
        self.logged_in, self.broken = logged_in, broken
        self.calls: list[tuple[str, Any]] = []
        self.Settings = dict
        self.id = "fake"
        self.dir = "run/files"
        self.lost: set[int] = set()
        """Steps at which the connection is lost, once each."""

    def login(self, prompt: bool, verify: bool) -> bool:
        assert (prompt, verify) == (False, False)
        return self.logged_in

    def init(self, **options: Any) -> "FakeWandb":
        self.calls.append(("init", options))
        if options["mode"] in self.broken:
            raise RuntimeError("no answer in 60 s\nmore about it")
        return self

    def teardown(self) -> None:
        self.calls.append(("teardown", None))

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.calls.append(("define_metric", (name, step_metric)))

    def log(self, data: dict[str, Any], step: int) -> None:
        if step in self.lost:
            self.lost.remove(step)
            raise ConnectionResetError("Connection lost\nmore about it")
        self.calls.append(("log", (step, data)))

    def Table(self, columns: list[str], data: list[Any]) -> Any:  # noqa: N802
        return columns, data

    def Histogram(self, np_histogram: Any) -> Any:  # noqa: N802
        return np_histogram

    def Artifact(self, name: str, type: str, metadata: dict[str, Any]) -> "FakeArtifact":  # noqa: N802
        return FakeArtifact(name, type, metadata)

    def log_artifact(self, artifact: "FakeArtifact", aliases: list[str]) -> None:
        self.calls.append(("artifact", (artifact.name, artifact.type, artifact.metadata, artifact.held, aliases)))

    def finish(self, exit_code: int) -> None:
        self.calls.append(("finish", exit_code))


class FakeArtifact:
    """What W&B would keep of a checkpoint."""

    def __init__(self, name: str, type: str, metadata: dict[str, Any]) -> None:
        self.name, self.type, self.metadata = name, type, metadata
        self.held: tuple[str, str] | None = None

    def add_reference(self, uri: str, checksum: bool) -> None:
        assert not checksum
        self.held = ("reference", uri)

    def add_dir(self, path: str) -> None:
        self.held = ("files", path)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return wandb


def test_a_disabled_wandb_is_no_sink(tmp_path: Path) -> None:
    assert open_wandb(config("disabled", tmp_path), tmp_path) is None
    assert wandb_beside(config("disabled", tmp_path), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "variable", "found"),
    [
        ("online", "offline", "offline"),
        ("online", "disabled", None),
        ("offline", "online", "offline"),
        ("disabled", "offline", None),
    ],
)
def test_wandbs_own_variable_can_ask_for_less(
    fake: FakeWandb, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str, variable: str, found: str | None
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    sink = open_wandb(config(mode, tmp_path), tmp_path)
    assert [call[1]["mode"] for call in fake.calls if call[0] == "init"] == ([found] if found else [])
    if sink is not None:
        sink.close()


def test_a_setting_that_wandb_refuses_is_named_without_its_value(
    fake: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = config("offline", tmp_path)
    refused = {"run": {"dir": "r"}, "data": {"dir": "d"}, "train": {"steps": 1}, "wandb": {"mode": "s3cret"}}
    fake.Settings = lambda **_: Config.model_validate(refused)  # type: ignore[assignment]
    assert open_wandb(cfg, tmp_path) is None
    assert "W&B cannot start (wandb.mode: Input should be 'disabled', 'offline' or 'online') and is off" in caplog.text
    assert "s3cret" not in caplog.text


def test_an_end_that_a_scheduler_has_set_is_held_up_for_seconds_only(fake: FakeWandb, tmp_path: Path) -> None:
    for urgent, patience_s in ((True, 10.0), (False, 180.0)):
        view = wandb_beside(config("online", tmp_path), tmp_path, 0, lambda urgent=urgent: urgent)  # type: ignore[misc]
        assert view is not None
        assert view._patience_s() == patience_s
        view.close(failed=False)


def test_a_start_from_nothing_is_another_run_and_a_resume_is_not(fake: FakeWandb, tmp_path: Path) -> None:
    for step in (0, 0, 5):
        open_wandb(config("online", tmp_path), tmp_path, step)
    ids = [options.get("id") or options["resume_from"] for kind, options in fake.calls if kind == "init"]
    assert ids[0] != ids[1]
    assert ids[2].startswith(ids[1])


def test_the_run_is_started_with_the_config_in_its_folder(fake: FakeWandb, tmp_path: Path) -> None:
    cfg = config("online", tmp_path)
    open_wandb(cfg, tmp_path, parameters=7)
    kind, options = fake.calls[0]
    run_id = (tmp_path / "wandb" / "run-id").read_text()
    assert (kind, len(run_id)) == ("init", 8)
    assert options["config"]["train"]["tokens_per_step"] == 524288
    assert options["config"]["run"] == {"dir": str(tmp_path), "seed": 1337, "stop_after": None}
    assert options["config"]["facts"] == {"parameters": 7}
    del options["config"]
    assert options == {
        "mode": "online",
        "project": "p",
        "entity": "team",
        "group": None,
        "tags": ("a",),
        "notes": None,
        "dir": tmp_path,
        "id": run_id,
        "name": tmp_path.name,
        "allow_val_change": True,
        "resume": "allow",
        "settings": {"console": "off", "init_timeout": 60.0, "finish_timeout": 60.0},
    }


def test_records_join_the_row_of_their_step_and_charts_have_four_axes(fake: FakeWandb, tmp_path: Path) -> None:
    sink = open_wandb(config("offline", tmp_path), tmp_path)
    assert sink is not None
    sink.log({"step": 10, "tokens": 640, "epoch": 0.5, "train/loss": 3.0})
    sink.close(failed=True)
    assert fake.calls[1:] == [
        *[("define_metric", (name, None)) for name in ("step", "tokens", "epoch", "time_s")],
        ("define_metric", ("*", "step")),
        ("log", (10, {"step": 10, "tokens": 640, "epoch": 0.5, "train/loss": 3.0})),
        ("finish", 1),
    ]


def test_samples_are_a_table_in_the_row_of_their_step(fake: FakeWandb, tmp_path: Path) -> None:
    sink = open_wandb(config("offline", tmp_path), tmp_path)
    assert sink is not None
    sink.sample(5, "a", "<i>")
    sink.sample(5, "b", "c")
    sink.log({"step": 6, "train/loss": 3.0})
    assert [data for kind, data in fake.calls if kind == "log"] == [
        (5, {"samples": (["step", "prompt", "text"], [[5, "a", "<i>"], [5, "b", "c"]])}),
        (6, {"step": 6, "train/loss": 3.0}),
    ]


def test_histograms_are_in_the_row_of_their_step_after_the_samples_before_them(fake: FakeWandb, tmp_path: Path) -> None:
    sink = open_wandb(config("offline", tmp_path), tmp_path)
    assert sink is not None
    sink.sample(5, "a", "b")
    sink.histograms({"step": 6, "tokens": 64}, {"gradients/w": Histogram(-1.0, 1.0, [5, 2])})
    sink.log({"step": 6, "train/loss": 3.0})
    assert [data for kind, data in fake.calls if kind == "log"] == [
        (5, {"samples": (["step", "prompt", "text"], [[5, "a", "b"]])}),
        (6, {"step": 6, "tokens": 64, "gradients/w": ([5, 2], [-1.0, 0.0, 1.0])}),
        (6, {"step": 6, "train/loss": 3.0}),
    ]


def with_checkpoints(run_dir: Path, how: str, *steps: int) -> Config:
    """A config that asks for artifacts, and checkpoints of some steps."""
    for step in steps:
        (run_dir / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    cfg = config("offline", run_dir)
    return cfg.model_copy(update={"wandb": cfg.wandb.model_copy(update={"checkpoints": how})})


@pytest.mark.parametrize("how", ["reference", "upload"])
def test_a_checkpoint_becomes_an_artifact_if_asked(fake: FakeWandb, tmp_path: Path, how: str) -> None:
    sink = open_wandb(with_checkpoints(tmp_path, how, 8), tmp_path)
    assert sink is not None
    sink.log({"step": 10, "checkpoint/step": 8.0})
    sink.close()
    place = tmp_path.resolve() / "checkpoints" / "step-00000008"
    held = ("reference", f"file://{place}") if how == "reference" else ("files", str(place))
    told = next(data for kind, data in fake.calls if kind == "artifact")
    assert told == ("fake-checkpoint", "model", {"step": 8}, held, ["latest", "step-8"])


def test_an_offline_resume_names_the_checkpoints_that_are_still_there(fake: FakeWandb, tmp_path: Path) -> None:
    cfg = with_checkpoints(tmp_path, "reference", 16, 24)  # that of step 8 was pruned
    lines = [f'{{"step": {step + 1}, "checkpoint/step": {step}}}\n' for step in (8, 16, 24)]
    (tmp_path / "log.jsonl").write_text("".join(lines))
    sink = open_wandb(cfg, tmp_path, 25)
    assert sink is not None
    sink.close()
    assert [data[2]["step"] for kind, data in fake.calls if kind == "artifact"] == [16, 24]


def test_a_checkpoint_that_wandb_refuses_stops_nothing(
    fake: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("quota exceeded\nmore about it")

    monkeypatch.setattr(fake, "log_artifact", refuse)
    sink = open_wandb(with_checkpoints(tmp_path, "reference", 8), tmp_path)
    assert sink is not None
    with caplog.at_level(logging.WARNING):
        sink.log({"step": 10, "checkpoint/step": 8.0})
        sink.log({"step": 11, "train/loss": 3.0})
        sink.close()
    assert fake.calls[-2:] == [("log", (11, {"step": 11, "train/loss": 3.0})), ("finish", 0)]
    place = tmp_path.resolve() / "checkpoints" / "step-00000008"
    assert caplog.messages == [f"W&B did not take checkpoint {place}: quota exceeded"]


def test_the_service_of_a_process_that_started_this_one_is_not_used(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SERVICE", "3-1-unix-elsewhere")
    open_wandb(config("offline", tmp_path), tmp_path)
    assert "WANDB_SERVICE" not in os.environ


def test_an_online_resume_rewinds_the_same_wandb_run(fake: FakeWandb, tmp_path: Path) -> None:
    open_wandb(config("online", tmp_path), tmp_path)
    open_wandb(config("online", tmp_path), tmp_path, 40)
    first, second = (options for kind, options in fake.calls if kind == "init")
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert second["resume_from"] == f"{first['id']}?_step=40"
    assert "resume" not in second


def test_an_offline_resume_writes_the_history_anew_and_drops_the_older_file(fake: FakeWandb, tmp_path: Path) -> None:
    older = tmp_path / "wandb" / "offline-run-1-x"
    older.mkdir(parents=True)
    (tmp_path / "log.jsonl").write_text('{"step": 0, "val/loss": 5.0}\n{"step": 1, "train/loss": 4.0}\n')
    (tmp_path / "samples.jsonl").write_text('{"step": 0, "prompt": "a", "text": "b"}\n')
    (tmp_path / "histograms.jsonl").write_text(
        '{"step": 1, "histograms": {"parameters/w": {"low": 0, "high": 1, "counts": [3]}}}\n'
    )
    open_wandb(config("offline", tmp_path), tmp_path, 1)
    assert [data for kind, data in fake.calls if kind == "log"] == [
        (0, {"step": 0, "val/loss": 5.0}),
        (0, {"samples": (["step", "prompt", "text"], [[0, "a", "b"]])}),
        (1, {"step": 1, "parameters/w": ([3], [0.0, 1.0])}),
        (1, {"step": 1, "train/loss": 4.0}),
    ]
    assert not older.exists()


def test_a_history_written_anew_holds_the_histograms_of_one_step_at_a_time(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = list(range(10_000, 20_000))  # 70 kB as text, and 16 MB in 40 steps as numbers of 32 bytes and their lists
    with (tmp_path / "histograms.jsonl").open("w") as file:
        for step in range(40):
            its = {"parameters/w": {"low": 0, "high": 1, "counts": counts}}
            file.write(json.dumps({"step": step, "histograms": its}) + "\n")
    told: list[int] = []
    monkeypatch.setattr(fake, "log", lambda data, step: told.append(step))
    tracemalloc.start()
    open_wandb(config("offline", tmp_path), tmp_path, 39)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told == list(range(40))
    assert peak < 4e6


def test_online_without_a_key_records_offline_and_says_so_in_one_line(
    fake: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.logged_in = False
    with caplog.at_level(logging.WARNING):
        assert open_wandb(config("online", tmp_path), tmp_path) is not None
    assert [options["mode"] for kind, options in fake.calls if kind == "init"] == ["offline"]
    assert caplog.messages == [
        "W&B records offline, for wandb sync, since it cannot start online: no key: run wandb login"
    ]


def test_a_missing_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes the import fail
    with pytest.raises(TrainingError, match=r"run pip install wandb, or set wandb\.mode=disabled"):
        wandb_beside(config("offline", tmp_path), tmp_path)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_wandb_that_fails_at_the_very_end_has_the_whole_history_offline(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    sink = open_wandb(config(mode, tmp_path), tmp_path)
    assert sink is not None
    (tmp_path / "log.jsonl").write_text('{"step": 0, "train/loss": 4.0}\n{"step": 1, "train/loss": 3.0}\n')
    finish, ends = fake.finish, []

    def failing(exit_code: int) -> None:
        ends.append(exit_code)
        if len(ends) == 1:
            raise ConnectionResetError("Connection lost")
        finish(exit_code)

    monkeypatch.setattr(fake, "finish", failing)
    sink.close(failed=True)
    told = [data if kind == "log" else kind for kind, data in fake.calls if kind != "define_metric"]
    rows = [(0, {"step": 0, "train/loss": 4.0}), (1, {"step": 1, "train/loss": 3.0})]
    assert told == ["init", "teardown", "init", *rows, "finish"]
    assert ends == [1, 1]


@pytest.mark.parametrize(("mode", "row"), [("online", 5), ("offline", 4)])
def test_what_sent_a_run_back_is_told_at_the_first_row_that_wandb_takes(
    fake: FakeWandb, tmp_path: Path, mode: str, row: int
) -> None:
    sink = open_wandb(config(mode, tmp_path), tmp_path, 4)
    assert sink is not None
    sink.log({"step": 4, "health/spikes": 1.0})
    sink.log({"step": 6, "train/loss": 3.0})
    assert [(step, data["step"]) for kind, (step, data) in fake.calls[-2:]] == [(row, 4), (6, 6)]


def test_an_unreachable_server_makes_the_run_offline(
    fake: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.broken = ("online",)
    with caplog.at_level(logging.WARNING):
        open_wandb(config("online", tmp_path), tmp_path)
    assert [(kind, options and options["mode"]) for kind, options in fake.calls[:3]] == [
        ("init", "online"),
        ("teardown", None),
        ("init", "offline"),
    ]
    assert caplog.messages == ["W&B records offline, for wandb sync, since it cannot start online: no answer in 60 s"]


def test_a_wandb_that_cannot_start_at_all_leaves_the_run_alone(
    fake: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.broken = ("offline",)
    with caplog.at_level(logging.WARNING):
        assert open_wandb(config("offline", tmp_path), tmp_path) is None
    assert caplog.messages == [
        "W&B cannot start (no answer in 60 s) and is off until the next start; training and log.jsonl go on"
    ]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_an_error_inside_wandb_makes_the_run_offline_with_its_whole_history(
    fake: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    sink = open_wandb(config(mode, tmp_path), tmp_path)
    assert sink is not None
    fake.lost = {2}
    with caplog.at_level(logging.WARNING):
        for step in range(4):
            with (tmp_path / "log.jsonl").open("a") as log:
                log.write(f'{{"step": {step}, "train/loss": 4.0}}\n')
            sink.log({"step": step, "train/loss": 4.0})
    told = [data if kind == "log" else data and data["mode"] for kind, data in fake.calls if kind != "define_metric"]
    rows = [(step, {"step": step, "train/loss": 4.0}) for step in range(4)]
    assert told == [mode, *rows[:2], None, "offline", *rows[:3], rows[3]]  # None is the teardown
    assert caplog.messages == ["W&B records offline from here, for wandb sync, since it failed: Connection lost"]


def test_what_was_told_from_the_run_folder_is_not_told_again(fake: FakeWandb, tmp_path: Path) -> None:
    # The record may be ahead of a W&B that starts beside training.
    (tmp_path / "log.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(3)))
    sink = open_wandb(config("offline", tmp_path), tmp_path)
    assert sink is not None
    for step in range(4):
        sink.sample(step, "a", "b")
        sink.histograms({"step": step}, {})
        sink.log({"step": step})
    steps = [data[0] for kind, data in fake.calls if kind == "log" and "samples" not in data[1]]
    assert steps == [0, 1, 2, 2, 2, 3, 3]  # what is told again of step 2 has its values
    assert [data[0] for kind, data in fake.calls if kind == "log" and "samples" in data[1]] == [2, 3]


def test_a_wandb_that_fails_twice_is_off(fake: FakeWandb, tmp_path: Path) -> None:
    sink = open_wandb(config("offline", tmp_path), tmp_path)
    assert sink is not None
    fake.lost = {1, 2}
    sink.log({"step": 1})
    with pytest.raises(ConnectionResetError, match="Connection lost"):
        sink.log({"step": 2})


def service_of(process: int) -> int:
    """The process id of W&B's own process below one of ours."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            if name.startswith(("wandb-core", "gpu_stats")) and int(rest.split()[1]) == process:
                return int(folder.name)
    raise AssertionError("W&B has no process")


def steps_in(path: Path, of: int) -> list[int]:
    """The steps that W&B's file holds; its process may write the last after it has said that the run is finished."""
    until = time.monotonic() + 20
    while len(rows := read_back(path)[1]) < of and time.monotonic() < until:
        time.sleep(0.1)
    return [row["_step"] for row in rows]


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes as Linux lists them")
@pytest.mark.filterwarnings("ignore")
def test_the_real_package_whose_process_is_killed_has_the_whole_history(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    run_dir = tmp_path / "run"
    sink = open_wandb(config("offline", run_dir), run_dir)
    assert sink is not None
    with caplog.at_level(logging.WARNING, "gptscale"), Tracker(JsonlSink(run_dir), sink) as tracker:
        tracker.log({"step": 0, "val/loss": 4.0})
        os.kill(service_of(os.getpid()), signal.SIGKILL)
        for step in range(1, 6):
            time.sleep(0.1)  # what is sent before the loss is noticed is lost without a word
            tracker.log({"step": step, "train/loss": 4.0})
    (told,) = [message for message in caplog.messages if "W&B" in message]
    assert told.startswith("W&B records offline from here, for wandb sync, since it failed: ")
    (path,) = run_dir.rglob("*.wandb")
    assert steps_in(path, of=6) == [0, 1, 2, 3, 4, 5]
    del sink, tracker
    gc.collect()  # here, where it is no warning that nobody waited for the killed process


@pytest.mark.long
@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_the_real_package_without_a_server_records_offline_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, listens: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # it takes connections and never answers
        port = server.getsockname()[1] if listens else 9
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setattr("gptscale.tracking.wandb.PATIENCE_S", 20.0)
        view = wandb_beside(config("online", tmp_path / "run"), tmp_path / "run")
        assert view is not None
        with caplog.at_level(logging.WARNING, "gptscale"), Tracker(JsonlSink(tmp_path / "run"), view) as tracker:
            begin = time.monotonic()
            for step in range(100):
                tracker.log({"step": step, "val/loss": 1.0})
            assert time.monotonic() - begin < 10  # while W&B waits for its server, for 20 s
    (told,) = [message for message in caplog.messages if "W&B" in message]
    assert told.startswith("W&B records offline, for wandb sync, since it cannot start online: ")
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert steps_in(path, of=100) == list(range(100))


def test_the_real_package_records_offline_in_the_run_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run_dir = tmp_path / "run"
    sink = open_wandb(config("offline", run_dir), run_dir)
    assert sink is not None
    sink.log({"step": 0, "tokens": 0, "epoch": 0.0, "val/loss": float("nan")})
    sink.sample(0, "\n", "text")
    sink.histograms({"step": 1}, {"parameters/w": Histogram(0.0, 1.0, [3, 4])})
    sink.close(failed=False)
    run_id = (run_dir / "wandb" / "run-id").read_text()
    (record,) = (run_dir / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb")
    assert record.stat().st_size > 0


def test_a_run_that_is_not_to_be_rewound_is_resumed_by_its_id(fake: FakeWandb, tmp_path: Path) -> None:
    cfg = config("online", tmp_path)
    cfg = cfg.model_copy(update={"wandb": cfg.wandb.model_copy(update={"rewind": False})})
    for step in (0, 40):
        open_wandb(cfg, tmp_path, step)
    first, second = (options for kind, options in fake.calls if kind == "init")
    assert (second["id"], second["resume"]) == (first["id"], "allow")
    assert "resume_from" not in second

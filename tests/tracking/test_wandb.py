import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gptscale.config.schema import Config
from gptscale.errors import TrainingError
from gptscale.tracking.wandb import open_wandb


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

    def log(self, data: dict[str, Any]) -> None:
        self.calls.append(("log", data))

    def finish(self, exit_code: int) -> None:
        self.calls.append(("finish", exit_code))

    def Html(self, data: str, inject: bool) -> str:  # noqa: N802
        return data


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return wandb


def test_a_disabled_wandb_is_no_sink(tmp_path: Path) -> None:
    assert open_wandb(config("disabled", tmp_path), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_run_is_started_with_the_config_in_its_folder(fake: FakeWandb, tmp_path: Path) -> None:
    cfg = config("online", tmp_path)
    open_wandb(cfg, tmp_path)
    kind, options = fake.calls[0]
    run_id = (tmp_path / "wandb" / "run-id").read_text()
    assert (kind, len(run_id)) == ("init", 8)
    assert options["config"]["train"]["tokens_per_step"] == 524288
    assert options["config"]["run"] == {"dir": str(tmp_path), "seed": 1337}
    del options["config"]
    assert options == {
        "mode": "online",
        "project": "p",
        "entity": "team",
        "tags": ("a",),
        "dir": tmp_path,
        "id": run_id,
        "name": tmp_path.name,
        "allow_val_change": True,
        "resume": "allow",
        "settings": {"console": "off", "init_timeout": 60.0, "finish_timeout": 60.0},
    }


def test_records_are_drawn_against_the_step(fake: FakeWandb, tmp_path: Path) -> None:
    sink = open_wandb(config("offline", tmp_path), tmp_path)
    assert sink is not None
    sink.log({"step": 10, "tokens": 640, "epoch": 0.5, "train/loss": 3.0})
    sink.close(failed=True)
    assert fake.calls[1:] == [
        ("define_metric", ("step", None)),
        ("define_metric", ("*", "step")),
        ("log", {"step": 10, "tokens": 640, "epoch": 0.5, "train/loss": 3.0}),
        ("finish", 1),
    ]


def test_every_prompt_has_its_own_panel_of_escaped_text(fake: FakeWandb, tmp_path: Path) -> None:
    sink = open_wandb(config("offline", tmp_path), tmp_path)
    assert sink is not None
    for step, prompt in ((0, "a"), (0, "b"), (5, "a")):
        sink.sample(step, prompt, "<i>")
    panels = [data for kind, data in fake.calls if kind == "log"]
    page = "<pre style='white-space: pre-wrap'><b>{}</b>&lt;i&gt;</pre>"
    assert panels == [
        {"step": 0, "sample/0": page.format("a")},
        {"step": 0, "sample/1": page.format("b")},
        {"step": 5, "sample/0": page.format("a")},
    ]


def test_a_resume_continues_the_same_wandb_run(fake: FakeWandb, tmp_path: Path) -> None:
    open_wandb(config("offline", tmp_path), tmp_path)
    open_wandb(config("online", tmp_path), tmp_path)
    first, second = (options["id"] for kind, options in fake.calls if kind == "init")
    assert first == second


def test_online_without_a_login_says_what_to_do(fake: FakeWandb, tmp_path: Path) -> None:
    fake.logged_in = False
    with pytest.raises(TrainingError) as caught:
        open_wandb(config("online", tmp_path), tmp_path)
    assert str(caught.value) == (
        "wandb.mode=online needs a login: run wandb login, or set wandb.mode=offline or disabled"
    )


def test_offline_needs_no_login(fake: FakeWandb, tmp_path: Path) -> None:
    fake.logged_in = False
    assert open_wandb(config("offline", tmp_path), tmp_path) is not None


def test_a_missing_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes the import fail
    with pytest.raises(TrainingError, match=r"run pip install wandb, or set wandb\.mode=disabled"):
        open_wandb(config("offline", tmp_path), tmp_path)


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


def test_a_wandb_that_cannot_start_at_all_says_so_in_one_line(fake: FakeWandb, tmp_path: Path) -> None:
    fake.broken = ("offline",)
    with pytest.raises(TrainingError) as caught:
        open_wandb(config("offline", tmp_path), tmp_path)
    assert str(caught.value) == "W&B cannot start (no answer in 60 s); set wandb.mode=disabled"


def test_the_real_package_records_offline_in_the_run_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run_dir = tmp_path / "run"
    sink = open_wandb(config("offline", run_dir), run_dir)
    assert sink is not None
    sink.log({"step": 0, "tokens": 0, "epoch": 0.0, "val/loss": float("nan")})
    sink.sample(0, "\n", "text")
    sink.close(failed=False)
    run_id = (run_dir / "wandb" / "run-id").read_text()
    (record,) = (run_dir / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb")
    assert record.stat().st_size > 0

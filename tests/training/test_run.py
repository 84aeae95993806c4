import gc
from typing import Any

import pytest

from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.training import run


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
    monkeypatch.setattr(run, "computes_bf16", lambda device: in_hardware)
    values["train"]["steps"] = 2
    for section, changes in settings.items():
        values[section] |= changes
    assert run.train(parse_config(values))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("slow: ")]
    assert len(said) == len(advice)
    for line, words in zip(said, advice, strict=True):
        assert line.startswith("slow: this CPU has no bf16 in hardware" + words)

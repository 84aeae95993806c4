import gc
from typing import Any

import pytest

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
    ("precision", "in_hardware", "warned"), [("bf16", False, True), ("bf16", True, False), ("fp32", False, False)]
)
def test_bf16_on_a_cpu_that_has_none_is_said_to_be_slow(
    precision: str,
    in_hardware: bool,
    warned: bool,
    cfg: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run, "computes_bf16", lambda device: in_hardware)
    train = cfg.train.model_copy(update={"precision": precision, "steps": 2})
    assert run.train(cfg.model_copy(update={"train": train}))
    advice = "slow: this CPU has no bf16 in hardware; use train.precision=fp32 here"
    assert (advice in capsys.readouterr().out) == warned

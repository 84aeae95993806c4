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

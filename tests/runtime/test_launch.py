"""What the environment says about the launch."""

import pytest

from gptscale.errors import ConfigError
from gptscale.runtime.launch import COLLECTIVE_TIMEOUT_S, collective_timeout_s


@pytest.mark.parametrize(("said", "seconds"), [("", COLLECTIVE_TIMEOUT_S), ("5", 5.0), ("1e3", 1000.0)])
def test_ranks_wait_as_long_as_they_are_told(monkeypatch: pytest.MonkeyPatch, said: str, seconds: float) -> None:
    monkeypatch.setenv("GPTSCALE_COLLECTIVE_TIMEOUT_S", said)
    assert collective_timeout_s() == seconds


@pytest.mark.parametrize("said", ["10 minutes", "-1", "0", "nan", "inf"])
def test_a_time_to_wait_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("GPTSCALE_COLLECTIVE_TIMEOUT_S", said)
    with pytest.raises(ConfigError, match=f"GPTSCALE_COLLECTIVE_TIMEOUT_S={said} is no number of seconds from 1 to"):
        collective_timeout_s()

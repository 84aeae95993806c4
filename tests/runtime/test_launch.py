"""What the environment says about the launch."""

import pytest

from gptscale.errors import ConfigError
from gptscale.runtime.launch import (
    COLLECTIVE_TIMEOUT_S,
    check_launch_variables,
    check_meeting_point,
    collective_timeout_s,
)


@pytest.mark.parametrize(("said", "seconds"), [("", COLLECTIVE_TIMEOUT_S), ("5", 5.0), ("1e3", 1000.0)])
def test_ranks_wait_as_long_as_they_are_told(monkeypatch: pytest.MonkeyPatch, said: str, seconds: float) -> None:
    monkeypatch.setenv("GPTSCALE_COLLECTIVE_TIMEOUT_S", said)
    assert collective_timeout_s() == seconds


@pytest.mark.parametrize("said", ["10 minutes", "-1", "0", "nan", "inf"])
def test_a_time_to_wait_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("GPTSCALE_COLLECTIVE_TIMEOUT_S", said)
    with pytest.raises(ConfigError, match=f"GPTSCALE_COLLECTIVE_TIMEOUT_S={said} is no number of seconds from 1 to"):
        collective_timeout_s()


@pytest.mark.parametrize(
    ("name", "said"), [("WORLD_SIZE", "abc"), ("WORLD_SIZE", "0"), ("RANK", "-1"), ("LOCAL_RANK", "")]
)
def test_what_no_launcher_has_set_is_named(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    check_launch_variables()
    monkeypatch.setenv(name, said)
    with pytest.raises(
        ConfigError, match=f"{name}={said} in the environment is no number .*; launchers set it, so unset"
    ):
        check_launch_variables()


@pytest.mark.parametrize(("address", "port"), [("", "29500"), ("127.0.0.1", ""), ("127.0.0.1", "x")])
def test_ranks_that_do_not_know_where_to_meet_are_told(
    monkeypatch: pytest.MonkeyPatch, address: str, port: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(
        ConfigError, match="MASTER_ADDR and MASTER_PORT do not say where they meet; start with accelerate"
    ):
        check_meeting_point()

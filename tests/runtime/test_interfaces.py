"""Which network interface Gloo takes."""

import os

import pytest
from torch._C._distributed_c10d import HashStore

from gptscale.runtime import interfaces


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ({"node0": "10.0.0.2"}, "eth-10.0.0.2"),
        ({"10.0.0.3": "10.0.0.1"}, "eth-10.0.0.1"),  # where all meet, node0 means the loopback too
        ({"node0": "10.0.0.2", "here": "10.9.9.9"}, None),  # Gloo finds its way by itself
        ({}, None),  # all on one machine
    ],
)
def test_gloo_goes_where_the_other_machines_are(
    monkeypatch: pytest.MonkeyPatch, ways: dict[str, str], expected: str | None
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setattr(interfaces.socket, "gethostname", lambda: "here")
    monkeypatch.setattr(interfaces, "address_towards", lambda host: ways.get(host, ""))
    monkeypatch.setattr(interfaces, "interface_with", lambda address: f"eth-{address}" if address else None)
    store = HashStore()
    store.set(f"{interfaces.ADDRESS}-1", "10.0.0.3" if ways else "")
    interfaces.let_gloo_leave_the_machine(store)
    assert os.environ.get("GLOO_SOCKET_IFNAME") == expected

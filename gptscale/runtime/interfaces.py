"""The network interfaces over which the ranks of several machines talk."""

import os
import socket
from ipaddress import ip_address

import psutil  # type: ignore[import-untyped]
from torch.distributed import distributed_c10d as c10d

from gptscale.runtime.launch import launched_rank, launched_world

ADDRESS = "gptscale/address"
"""Where the ranks of several machines say how they are reached."""


def let_gloo_follow_nccl() -> None:
    """Take the network interface that NCCL was told for Gloo too, which does not read it.

    By itself Gloo takes that of the host's name, which on many machines is the loopback's.
    """
    told = os.environ.get("NCCL_SOCKET_IFNAME", "")
    here = addressed_interfaces()
    words = [word for word in told.removeprefix("=").split(",") if word and not told.startswith("^")]
    found = [name for word in words for name in here if name == word]
    if not told.startswith("="):  # each word is a prefix
        found += [name for word in words for name in here if name.startswith(word)]
    if found:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", found[0])


def let_gloo_leave_the_machine(store: c10d.Store) -> None:
    """Where this host's name means the loopback, as Debian's /etc/hosts has it, take the interface to other machines.

    Gloo would tell them the loopback's address. All ranks call this together.
    """
    here = address_towards(os.environ["MASTER_ADDR"])
    store.set(f"{ADDRESS}-{launched_rank()}", here)
    on_one_machine = launched_world() == int(os.environ.get("LOCAL_WORLD_SIZE", launched_world()))
    if on_one_machine or address_towards(socket.gethostname()):
        return
    if not here:  # on the machine where all meet, whose own name leads nowhere else
        said = (store.get(f"{ADDRESS}-{rank}").decode() for rank in range(launched_world()))
        here = address_towards(next((address for address in said if address), ""))
    if name := interface_with(here):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def addressed_interfaces() -> list[str]:
    """This machine's network interfaces that have an address; others are down, or nobody's."""
    internet = (socket.AF_INET, socket.AF_INET6)
    return [name for name, known in psutil.net_if_addrs().items() if any(each.family in internet for each in known)]


def address_towards(host: str) -> str:
    """This machine's address on the way to a host, to which nothing is sent; empty where that way is the loopback."""
    try:
        family, kind, _, _, there = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as s:
            s.connect(there)
            here = str(s.getsockname()[0])
    except OSError:  # the name leads nowhere
        return ""
    return "" if ip_address(here).is_loopback else here


def interface_with(address: str) -> str | None:
    """This machine's network interface that has an address."""
    known = psutil.net_if_addrs().items()
    return next((name for name, addresses in known if any(each.address == address for each in addresses)), None)

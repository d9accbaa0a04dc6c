"""A network of one's own, in which a machine can go dark: its packets are dropped, nobody says goodbye.

`enter` moves this process (and whatever it starts) into a network namespace. Nodes have an address each
there, and `go_dark` makes one silent for good: no FIN, no RST, no ACK; connecting to it hangs. Needs root.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

from cloud.local import provider as local
from cloud.local.node import LocalNode
from cloud.local.provider import LocalProvider
from cloud.processes import is_alive

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_NOBODY = "02:00:00:00:00:01"  # no interface has this hardware address
_born = 0


def why_not() -> str:
    """Empty, or what is missing here."""
    if shutil.which("ip") is None:
        return "there is no `ip` here"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip()


def enter() -> None:
    """From now on this process lives in a network of its own. To be called before there are threads."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no network namespace")
    _ip("link set lo up")
    # A wire that ends nowhere, and rules of ours before the one that delivers what is for this machine.
    _ip("link add nowhere type veth peer name nobody")
    _ip("link set nowhere up")
    _ip("link set nobody up")
    _ip("route add default dev nowhere table 51")
    _ip("rule add pref 1000 lookup local")
    _ip("rule del pref 0")
    local.LocalNode = Addressed  # type: ignore[misc]


class Addressed(LocalNode):
    """A local node with an address of its own, for its SSH server and for its workers."""

    def __init__(self, *args: Any, **options: Any) -> None:
        global _born
        _born += 1
        self.address = f"10.77.{_born // 250}.{1 + _born % 250}"
        _ip(f"addr add {self.address}/32 dev lo")
        super().__init__(*args, **options, host=self.address)

    async def start(self, environment: Mapping[str, str]) -> None:
        """See `LocalNode`."""
        await super().start({**environment, "PARCAE_ADDRESS": self.address})


def go_dark(provider: LocalProvider, name: str) -> None:
    """What is sent to this node is lost, and it says nothing any more."""
    node = provider.node(name)
    assert isinstance(node, Addressed)
    for record in node.register.records():
        if is_alive(record):
            os.killpg(record.pid, signal.SIGSTOP)
    _ip(f"neigh add {node.address} lladdr {_NOBODY} dev nowhere")
    _ip(f"route add {node.address}/32 dev nowhere table 50")
    _ip(f"rule add pref 10 to {node.address} lookup 50")
    _ip(f"rule add pref 11 from {node.address} lookup 51")


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)

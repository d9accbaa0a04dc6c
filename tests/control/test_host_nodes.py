"""What is done on hosts of one's own, seen without a host."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cloud.hosts.inventory import Host
from cloud.types import Instance, InstanceState, OwnSshTarget
from runtime.control.providers.hosts import HostNodes


def test_who_takes_over_a_run_clears_what_it_has_not_reached_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed job that ends before it has come back to a host knows that an agent of its run is there."""
    cleared: list[str] = []

    async def clear(self: HostNodes, host: Host, instance: Instance) -> None:
        cleared.append(host.name)

    monkeypatch.setattr(HostNodes, "clear_leftovers", clear)
    hosts = tuple(Host(name, OwnSshTarget("127.0.0.1", 9)) for name in ("old", "new"))
    nodes = HostNodes("job", "ab12", hosts, tmp_path, frozenset({"old"}))

    async def scene() -> None:
        for host in hosts:
            where = f"{host.name}-ab12-1", host.name, "job", "token", host.pool
            await nodes.clear(host, Instance(*where, InstanceState.TERMINATED, 0.0))

    asyncio.run(scene())
    assert cleared == ["old"]

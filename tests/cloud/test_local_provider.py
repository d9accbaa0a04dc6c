"""The local cloud as a provider: tokens, names, clocks, folders."""

from __future__ import annotations

import asyncio
import filecmp
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from cloud.local.provider import LocalProvider
from cloud.local.schedule import Schedule
from cloud.provider import CloudError, SpotProvider
from cloud.types import InstanceState
from runtime.control.fleet import ssh


@asynccontextmanager
async def local(root: Path, schedule: Schedule, **settings: Any) -> AsyncIterator[LocalProvider]:
    """A started provider, closed in the end."""
    provider = LocalProvider("job", root, schedule, zygote=False, **settings)
    await provider.start()
    try:
        yield provider
    finally:
        await provider.close()
        assert not (root / "nodes").exists()


def test_a_request_repeated_under_its_token_rents_nothing_new(tmp_path: Path) -> None:
    """Tokens make requests idempotent; what cannot be had is refused, with the reason."""

    async def scene() -> None:
        async with local(tmp_path, Schedule.constant(3)) as provider:
            as_protocol: SpotProvider = provider
            first = await as_protocol.request(2, "token")
            assert [instance.name for instance in first.instances] == ["node1", "node2"]
            assert {instance.state for instance in first.instances} == {InstanceState.RUNNING}
            assert await provider.request(2, "token") == first
            second = await provider.request(2, "other")
            assert [instance.name for instance in second.instances] == ["node3"]
            assert second.refused == 1 and "3 instances" in second.why
            await provider.terminate(["node1", "node1", "nobody"])
            states = {instance.name: instance.state for instance in await provider.describe()}
            assert states["node1"] is InstanceState.TERMINATED
            with pytest.raises(CloudError, match="has ended"):
                provider.ssh_target(first.instances[0])
            # without a trace there is another for what was given back, under a name of its own
            third = await provider.request(2, "third")
            assert [instance.name for instance in third.instances] == ["node4"]
            provider.kill("node4")
            assert (await provider.request(1, "fourth")).refused == 1

    asyncio.run(scene())


def test_time_stands_still_until_the_clock_is_started(tmp_path: Path) -> None:
    """Only instances of time 0 exist before; capacity that comes wakes who waits for it."""

    async def scene() -> None:
        schedule = Schedule.of([(0.0, "add", "first"), (1.0, "add", "second")])
        async with local(tmp_path, schedule, speed=20.0) as provider:
            await provider.request(5, "a")
            await provider.wait_for_capacity(0.1)
            assert (await provider.request(5, "b")).instances == ()
            provider.start_clock()
            provider.start_clock()
            async with asyncio.timeout(5):
                await provider.wait_for_capacity(5)
            assert [instance.name for instance in (await provider.request(5, "c")).instances] == ["second"]

    asyncio.run(scene())


def test_a_name_that_comes_back_during_its_notice_is_a_new_instance_after_it(tmp_path: Path) -> None:
    """The trace may bring a removed name back at once; it can be rented when the old machine has ended."""

    async def scene() -> None:
        schedule = Schedule.of([(0.0, "add", "oak"), (1.0, "remove", "oak"), (2.0, "add", "oak")])
        async with local(tmp_path, schedule, speed=20.0, notice_s=4.0) as provider:
            (old,) = (await provider.request(1, "a")).instances
            provider.start_clock()
            async with asyncio.timeout(5):
                await provider.wait_for_capacity(5)
                assert [instance.state for instance in await provider.describe()] == [
                    InstanceState.TERMINATED
                ]
            (new,) = (await provider.request(1, "c")).instances
            assert (new.name, new.id != old.id) == ("oak", True)
            assert provider.node("oak").metadata.values.get("spot/instance-action") is None

    asyncio.run(scene())


def test_a_node_is_reached_with_its_own_pinned_key_only(tmp_path: Path) -> None:
    """Another machine behind the same address is refused; a killed one refuses connections."""

    async def scene() -> None:
        async with local(tmp_path, Schedule.constant(2)) as provider:
            one, two = (await provider.request(2, "a")).instances
            target, other = provider.ssh_target(one), provider.ssh_target(two)
            connection = await ssh.connect(target)
            reply = await ssh.run(connection, "echo $PARCAE_NODE; pwd; exit 3", 5.0)
            assert reply.status == 3
            assert reply.output.split() == ["node1", str(provider.node("node1").folder)]
            with pytest.raises(ssh.CommandError, match="signal KILL"):
                await ssh.run(connection, "kill -9 $$", 5.0)
            with pytest.raises(ssh.CommandError, match=r"did not end within 0\.1 s"):
                await ssh.run(connection, "sleep 30", 0.1)
            async with connection.start_sftp_client() as files:
                await files.put(__file__, "/copied")
            same = filecmp.cmp(provider.node("node1").folder / "copied", __file__, shallow=False)
            assert same
            lost = asyncio.ensure_future(ssh.run(connection, "sleep 30", 5.0))
            await asyncio.sleep(0.1)
            provider.kill("node1")
            with pytest.raises(ssh.ConnectionLost):
                await lost
            with pytest.raises(ssh.RefusedError):
                await ssh.connect(target)
            impostor = type(target)(
                other.host, other.port, other.username, other.client_key, target.host_public_key
            )
            with pytest.raises(ssh.SshError, match="another host key"):
                await ssh.connect(impostor)
            stranger = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
            with pytest.raises(ssh.SshError):
                await ssh.connect(
                    type(other)(other.host, other.port, other.username, stranger, other.host_public_key)
                )

    asyncio.run(scene())


def test_a_deep_folder_works_as_well(tmp_path: Path) -> None:
    """A folder whose path is longer than a socket's may be is no obstacle, and nothing is left elsewhere."""
    from tests.control.fleets import local_fleet

    deep = tmp_path / ("deep" * 20) / ("deeper" * 10)
    elsewhere = []

    async def scene() -> None:
        async with local_fleet(deep, 1) as fleet:
            await fleet.joined(1)
            told = (fleet.provider.node("node1").folder / "agent.json").read_text()
            elsewhere.append(Path(json.loads(told)["socket"]))
            await fleet.echo("node1", "hello")

    asyncio.run(scene())
    assert not elsewhere[0].is_relative_to(tmp_path)
    assert not elsewhere[0].parent.exists()


def test_a_session_that_breaks_off_leaves_nothing_behind(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Its command hears the end of its input and ends; the node forgets it and keeps nothing that waits."""

    async def scene() -> None:
        async with local(tmp_path, Schedule.constant(1)) as provider:
            (instance,) = (await provider.request(1, "token")).instances
            node = provider.node(instance.name)
            for _ in range(3):
                connection = await ssh.connect(provider.ssh_target(instance))
                process = await connection.create_process("cat", encoding=None)
                process.stdin.write(b"a line\n")
                assert await process.stdout.readline() == b"a line\n"
                connection.abort()
                await connection.wait_closed()
            async with asyncio.timeout(10):
                while node._processes:  # noqa: ASYNC110 - a state, of which nothing tells
                    await asyncio.sleep(0.01)

    asyncio.run(scene())
    gc.collect()
    assert [str(one.message) for one in recwarn if issubclass(one.category, RuntimeWarning)] == []

"""Hosts as a cloud: who is up can be rented, who goes away has ended, who comes back is new."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from cloud.hosts.inventory import Host
from cloud.hosts.provider import HostRefusesError, HostsProvider, HostTimes, run_of
from cloud.provider import CloudError, HearsOfTrouble, MaybeStillRunningError
from cloud.types import Instance, InstanceState, OwnSshTarget

TIMES = HostTimes(knock_s=0.02, again_s=0.01, gone_s=0.1, cool_s=0.2, lease_s=5.0)
DOWN, MUTE, UP = "down", "mute", "up"


class Doors:
    """Stands in for the hosts: each door is up, down (refuses) or mute (a time-out)."""

    def __init__(self, **doors: str) -> None:
        self.doors = doors
        self.knocks = dict.fromkeys(doors, 0)
        self.cleared: list[str] = []

    async def knock(self, host: Host) -> None:
        self.knocks[host.name] += 1
        if self.doors[host.name] == DOWN:
            raise HostRefusesError(f"{host.name} refuses connections")
        if self.doors[host.name] == MUTE:
            raise CloudError(f"{host.name} does not answer")

    async def clear(self, host: Host, instance: Instance) -> None:
        await self.knock(host)
        self.cleared.append(host.name)


@asynccontextmanager
async def provider_of(doors: Doors) -> AsyncIterator[HostsProvider]:
    """A started provider; closing it is the test's business, or does not matter."""
    hosts = [Host(name, OwnSshTarget(name)) for name in doors.doors]
    provider = HostsProvider("job", "ab12", hosts, doors, TIMES)
    await provider.start()
    try:
        yield provider
    finally:
        doors.doors = dict.fromkeys(doors.doors, UP)
        await provider.close()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll a condition, for 5 s at most."""
    async with asyncio.timeout(5):
        while not await condition():  # noqa: ASYNC110 - a state, of which nothing tells
            await asyncio.sleep(0.005)


async def states(provider: HostsProvider) -> dict[str, InstanceState]:
    """Of every instance, by id."""
    return {instance.id: instance.state for instance in await provider.describe()}


def test_only_hosts_that_are_up_are_rented() -> None:
    """The reply says why there are no more, and the same token brings the same reply."""

    async def body() -> None:
        async with provider_of(Doors(a=UP, b=DOWN, c=UP)) as provider:
            reply = await provider.request(3, "t1")
            assert [instance.name for instance in reply.instances] == ["a", "c"]
            assert (reply.refused, reply.why) == (1, "b refuses connections")
            assert await provider.request(3, "t1") == reply
            assert run_of(reply.instances[0]) == "ab12"
            assert isinstance(provider, HearsOfTrouble)
            assert provider.ssh_target(reply.instances[0]) == OwnSshTarget("a")

    asyncio.run(body())


@pytest.mark.parametrize("how", [DOWN, MUTE])
def test_who_goes_away_has_ended_and_who_comes_back_is_new(how: str) -> None:
    """A refusal is believed at once, silence after a while; the new instance has another id."""

    async def body() -> None:
        doors = Doors(a=UP)
        async with provider_of(doors) as provider:
            (old,) = (await provider.request(1, "t1")).instances
            doors.doors["a"] = how
            provider.suspect("a")

            async def ended() -> bool:
                return (await states(provider))[old.id] is InstanceState.TERMINATED

            await until(ended)
            with pytest.raises(CloudError, match="a has gone away"):
                provider.ssh_target(old)
            assert (await provider.request(1, "t2")).instances == ()
            doors.doors["a"] = UP
            await asyncio.wait_for(provider.wait_for_capacity(5.0), 5.0)
            (new,) = (await provider.request(1, "t3")).instances
            assert new.id != old.id
            assert (await states(provider))[new.id] is InstanceState.RUNNING

    asyncio.run(body())


def test_trouble_that_passes_ends_nothing() -> None:
    """A host whose door opens again within the time keeps its instance."""

    async def body() -> None:
        doors = Doors(a=UP)
        async with provider_of(doors) as provider:
            (instance,) = (await provider.request(1, "t1")).instances
            doors.doors["a"] = MUTE
            before = doors.knocks["a"]
            provider.suspect("a")

            async def knocked_twice() -> bool:
                return doors.knocks["a"] >= before + 2

            await until(knocked_twice)
            doors.doors["a"] = UP
            before = doors.knocks["a"]

            async def knocked() -> bool:
                return doors.knocks["a"] > before

            await until(knocked)
            assert (await states(provider))[instance.id] is InstanceState.RUNNING

    asyncio.run(body())


def test_a_host_that_was_given_back_is_asked_again_later() -> None:
    """After `cool_s`, and not before."""

    async def body() -> None:
        async with provider_of(Doors(a=UP)) as provider:
            await provider.request(1, "t1")
            await provider.terminate(["a", "unknown"])
            assert (await provider.request(1, "t2")).instances == ()
            await asyncio.wait_for(provider.wait_for_capacity(5.0), 5.0)
            assert len((await provider.request(1, "t3")).instances) == 1

    asyncio.run(body())


def test_the_end_clears_every_host_that_was_used() -> None:
    """One that cannot be reached may still be running, and is named."""

    async def body() -> None:
        doors = Doors(a=UP, b=UP, c=UP)
        async with provider_of(doors) as provider:
            await provider.request(2, "t1")
            doors.doors["b"] = MUTE
            with pytest.raises(MaybeStillRunningError, match=r"b: b does not answer.*ends by itself"):
                await provider.close()
            assert doors.cleared == ["a"]
            assert set((await states(provider)).values()) == {InstanceState.TERMINATED}

    asyncio.run(body())

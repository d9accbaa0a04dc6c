"""What may go wrong, at every cloud where it can: one list, held by all providers alike."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud.provider import CloudError, CredentialsError, MaybeStillRunningError, NoCapacityError, QuotaError
from cloud.types import InstanceState
from runtime.control.fleet.fleet import Fleet, InstanceChanged, LinkTimes, RentFailed
from tests.cloud.aws.conftest import ec2, endpoint  # noqa: F401
from tests.cloud.gcp.conftest import compute  # noqa: F401
from tests.cloud.places import Gate, at, living, place_of

TOKENS = [f"{number:032x}" for number in range(9)]
NO_API = {
    "local": "no API stands between: a call cannot be refused or lost",
    "hosts": "no account and no API: what SSH does is the fleet's to survive",
}


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """The cloud that the test names."""
    with place_of(request.param, tmp_path, request) as made:
        yield made


async def until(condition: Any, within_s: float = 10.0) -> None:
    """Poll what no event tells."""
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - a state, of which nothing tells
            await asyncio.sleep(0.01)


@at("local", "hosts", "aws", "gcp")
def test_what_a_job_holds_is_what_there_is(place: Any) -> None:
    """A token is honoured, what was rented is shown, an unknown name is no error, the end leaves nothing."""

    async def scene() -> None:
        provider = place.provider()
        await provider.start()
        reply = await provider.request(2, TOKENS[0])
        assert len(reply.instances) == 2
        assert await provider.request(2, TOKENS[0]) == reply
        names = {one.name for one in reply.instances}
        assert await living(provider) == place.live() == names
        gone = min(names)
        await provider.terminate([gone, "nobody"])
        await provider.terminate([gone])

        async def ended() -> bool:
            provider._looked_s = 0.0
            return await living(provider) == names - {gone}

        await until(ended)
        await provider.close()
        assert place.live() == await living(provider) == set()
        await provider.close()

    asyncio.run(scene())


@at("local", "hosts", "aws", "gcp")
def test_what_comes_while_the_job_is_torn_down_ends_too(place: Any) -> None:
    """A request is under way when the end begins, and was cancelled: what it brings is gone afterwards."""

    async def scene() -> None:
        provider = place.provider()
        await provider.start()
        await provider.request(1, TOKENS[0])
        gate = Gate(place) if place.name in ("aws", "gcp") else None
        request = asyncio.create_task(provider.request(2, TOKENS[1]))
        if gate is not None:
            await asyncio.to_thread(gate.entered.wait, 10)
        else:
            await asyncio.sleep(0)
        request.cancel()
        closing = asyncio.create_task(provider.close())
        await asyncio.sleep(0)
        if gate is not None:
            gate.open()
        await closing
        await asyncio.gather(request, return_exceptions=True)
        assert place.live() == set()
        assert await living(provider) == set()
        with contextlib.suppress(CloudError):  # and nothing can be rented any more
            assert (await provider.request(1, TOKENS[2])).instances == ()
        assert place.live() == set()

    asyncio.run(scene())


@at(
    "aws",
    "gcp",
    local="nobody bills a process; one that does not end is named by tests/cli/test_down.py",
    hosts="nobody bills a host; one that cannot be reached is named by tests/cloud/hosts/test_provider.py",
)
def test_ended_is_what_the_api_calls_so(place: Any) -> None:
    """Still shutting down is still billed: named as a doubt, and the end once the API says so."""

    async def scene() -> None:
        place.linger(60.0)
        provider = place.provider()
        await provider.start()
        (instance,) = (await provider.request(1, TOKENS[0])).instances
        await provider.terminate([instance.name])
        (shown,) = await provider.describe()
        assert shown.state is InstanceState.TERMINATING
        provider._settings = _impatient(provider._settings)
        with pytest.raises(MaybeStillRunningError, match=instance.name):
            await provider.close()
        assert place.live() == {instance.name}
        place.linger(0.0)
        if place.name == "gcp":
            place.compute.instances.clear()
        await provider.close()
        assert place.live() == await living(provider) == set()

    asyncio.run(scene())


def _impatient(settings: Any) -> Any:
    from dataclasses import replace

    return replace(settings, times=replace(settings.times, close_s=0.2))


@at("local", "hosts", "aws", "gcp")
def test_an_interruption_without_a_notice_is_seen(place: Any) -> None:
    """The machine is gone: the provider says so by itself, and rents another when it is asked."""

    async def scene() -> None:
        provider = place.provider()
        await provider.start()
        reply = await provider.request(2, TOKENS[0])
        lost, kept = reply.instances
        place.take(provider, lost.name)

        async def seen() -> bool:
            provider._looked_s = 0.0
            states = {one.id: one.state for one in await provider.describe()}
            return states[lost.id] is InstanceState.TERMINATED

        await until(seen)
        assert await living(provider) == {kept.name}
        place.refill(provider)
        (new,) = (await provider.request(1, TOKENS[1])).instances
        assert new.id not in (lost.id, kept.id)
        await provider.close()
        assert place.live() == set()

    asyncio.run(scene())


@at("hosts", "aws", "gcp", local="a node is killed while it boots in tests/control/test_fleet_storm.py")
def test_a_machine_that_vanishes_while_it_is_dialled_is_replaced(place: Any) -> None:
    """Nobody answers there, and then it is gone: dialling ends, and another takes its place."""

    async def scene() -> None:
        provider = place.provider()
        # Nothing listens behind these addresses, so that the fleet dials for as long as they are there.
        fleet = Fleet(provider, None, "job", 1, times=LinkTimes(retry_s=0.02, boot_s=60.0), poll_s=0.05)
        await fleet.start()

        async def next_state(state: InstanceState, but: str = "") -> Any:
            async with asyncio.timeout(10):
                while True:
                    event = await fleet.events.get()
                    one = event.instance if isinstance(event, InstanceChanged) else None
                    if one is not None and one.state is state and one.id != but:
                        return one

        async def dialled() -> bool:
            return bool(fleet._links)

        await until(dialled)
        (link,) = fleet._links.values()
        first = link.instance
        place.take(provider, first.name)
        gone = await next_state(InstanceState.TERMINATED)
        assert gone.id == first.id
        await next_state(InstanceState.RUNNING, but=first.id)
        assert link not in fleet._links.values()
        place.refill(provider)
        await fleet.stop()
        assert place.live() == set()

    asyncio.run(scene())


@at("aws", "gcp", local="has no quota", hosts="has no quota")
def test_a_quota_is_named_and_nothing_is_asked_again(place: Any) -> None:
    """One call, an error that names the quota and where to ask for more, and nothing rented."""
    place.refuse("quota")

    async def scene() -> None:
        provider = place.provider()
        await provider.start()
        with pytest.raises(QuotaError, match=r"(?i)quota.*https://.*fewer nodes"):
            await provider.request(2, TOKENS[0])
        assert place.rents() == 1
        await provider.close()
        assert place.live() == set()

    asyncio.run(scene())


@at("local", "hosts", "aws", "gcp")
def test_stock_out_everywhere_is_told_and_waited_out(place: Any) -> None:
    """The reply says why; nobody is asked again before something may have changed; then it works."""

    async def scene() -> None:
        provider = place.provider()
        await provider.start()
        place.empty(provider)
        reply = await provider.request(2, TOKENS[0])
        assert (reply.instances, reply.refused) == ((), 2)
        assert reply.why
        if place.name in ("aws", "gcp"):
            calls = place.rents()
            assert "asking again in" in reply.shortage
            assert (await provider.request(2, TOKENS[1])).instances == ()
            assert place.rents() == calls, "pools rest"
            provider._pools._closed_until_s.clear()  # as if their time of rest were over
        place.refill(provider)
        await asyncio.wait_for(provider.wait_for_capacity(5.0), 6.0)
        assert (await provider.request(1, TOKENS[2])).instances
        await provider.close()
        assert place.live() == set()

    asyncio.run(scene())


@at("hosts", "aws", "gcp", local="the trace decides what there is, and nobody is told")
def test_a_job_is_told_once_that_nothing_is_to_be_had(place: Any) -> None:
    """In the fleet's events, with the reason; when there is some again the fleet rents it by itself."""

    async def scene() -> None:
        provider = place.provider()
        fleet = Fleet(provider, None, "job", 1, times=LinkTimes(retry_s=0.05, boot_s=60.0), poll_s=0.05)
        await provider.start()
        place.empty(provider)
        if place.name != "hosts":
            provider._pools._first_s = 0.5  # of rest
        await fleet.start()
        async with asyncio.timeout(10):
            told = await fleet.events.get()
        assert isinstance(told, RentFailed) and isinstance(told.error, NoCapacityError)
        assert "refuses connections" in told.why if place.name == "hosts" else "asking again in" in told.why
        await asyncio.sleep(0.3)  # it looks several times more
        assert fleet.events.empty()
        place.refill(provider)

        async def rented() -> bool:
            return bool(fleet._links)

        await until(rented)
        await fleet.stop()
        assert place.live() == set()

    asyncio.run(scene())


@at("aws", "gcp", **NO_API)
@pytest.mark.parametrize("why", ["expired", "skewed"])
def test_expired_credentials_take_nothing_away(place: Any, why: str) -> None:
    """Or a clock that went off, in mid-job: told once, nobody is given up; a doubt at the end, a sweep."""

    async def scene() -> None:
        provider = place.provider()
        fleet = Fleet(provider, None, "job", 2, times=LinkTimes(retry_s=0.05, boot_s=60.0), poll_s=0.05)
        await fleet.start()

        async def held() -> bool:
            return len(fleet._links) == 2

        await until(held)
        names = set(fleet._links)
        mend = place.refuse(why)
        seen = []
        async with asyncio.timeout(10):
            while not any(isinstance(event, RentFailed) and event.error for event in seen):
                seen.append(await fleet.events.get())
        told = seen[-1]
        assert isinstance(told.error, CredentialsError)
        provider._looked_s = 0.0
        await asyncio.sleep(0.3)  # it asks the API several times more
        while not fleet.events.empty():
            seen.append(fleet.events.get_nowait())
        assert sum(isinstance(event, RentFailed) and event.error is not None for event in seen) == 1
        assert set(fleet._links) == names
        with pytest.raises(MaybeStillRunningError) as caught:
            await fleet.stop()
        assert all(name in str(caught.value) for name in names), "it says who may still be running"
        assert place.live() == names
        with pytest.raises(MaybeStillRunningError):
            await asyncio.to_thread(place.sweep)
        mend()
        assert set(await asyncio.to_thread(place.sweep)) == names
        assert place.live() == set()
        assert place.sweep() == []

    asyncio.run(scene())


@at("aws", "gcp", **NO_API)
def test_throttling_is_waited_out_ever_more_slowly(place: Any) -> None:
    """Two refusals by the rate limiter cost two growing pauses at each call, and no instance too many."""

    async def scene() -> None:
        provider = place.provider()
        await provider.start()
        place.pauses.clear()
        place.refuse("throttled", 2)
        reply = await provider.request(1, TOKENS[0])
        assert {one.name for one in reply.instances} == place.live()
        assert len(place.live()) == 1
        assert len(place.pauses) == 2
        place.refuse("throttled", 2)
        provider._looked_s = 0.0
        assert await living(provider) == place.live()
        assert len(place.pauses) == 4
        place.refuse("throttled", 2)
        await provider.close()
        assert place.live() == set()

    asyncio.run(scene())


@at("aws", "gcp", **NO_API)
def test_a_lost_answer_rents_nothing_twice(place: Any) -> None:
    """The launch was carried out and its answer broke: asked again, it is the same launch."""
    place.refuse("lost", 1)

    async def scene() -> None:
        provider = place.provider()
        await provider.start()
        reply = await provider.request(2, TOKENS[0])
        assert {one.name for one in reply.instances} == place.live()
        assert len(place.live()) == 2
        await provider.close()
        assert place.live() == set()

    asyncio.run(scene())


@at(
    "aws",
    "gcp",
    local="runs by the clock of this machine alone",
    hosts="keeps its times by the monotonic clock",
)
def test_a_clock_that_is_set_back_stops_nothing(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour back in mid-job: instances are looked at, pools that rest open again, ages are our own."""

    async def scene() -> None:
        provider = place.provider()
        now_s = time.time
        await provider.start()
        (instance,) = (await provider.request(1, TOKENS[0])).instances
        await provider.describe()
        place.empty(provider)
        assert (await provider.request(1, TOKENS[1])).shortage
        monkeypatch.setattr(time, "time", lambda: now_s() - 3600)
        provider._clock = time.time
        place.take(provider, instance.name)

        async def seen() -> bool:
            return await living(provider) == set()

        await until(seen)
        assert provider._pools.next_open_s(provider._steady()) < 60
        await provider.close()

    asyncio.run(scene())


@at("aws", "gcp", **NO_API)
def test_an_instances_age_is_told_by_our_own_clock(place: Any) -> None:
    """This machine's clock is an hour off: what an instance has cost must not be an hour off as well."""

    async def scene() -> None:
        provider = place.provider()
        provider._clock = lambda: time.time() + 3600
        await provider.start()
        await provider.request(1, TOKENS[0])
        (one,) = await provider.describe()
        assert abs(one.launched_s - provider._clock()) < 60
        await provider.close()

    asyncio.run(scene())

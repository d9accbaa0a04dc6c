"""What may go wrong between a job and a cloud where it has an account: one list, held by all of these."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from cloud.provider import CloudError, CredentialsError, MaybeStillRunningError
from runtime.control.fleet.fleet import Fleet, LinkTimes, RentFailed
from tests.cloud.aws.conftest import ec2, endpoint  # noqa: F401
from tests.cloud.gcp.conftest import compute  # noqa: F401
from tests.cloud.places import at, living
from tests.cloud.test_every_provider import TOKENS, place, until  # noqa: F401

# ruff: noqa: F811
NO_API = {
    "local": "no API stands between: a call cannot be refused or lost",
    "hosts": "no account and no API: what SSH does is the fleet's to survive",
}


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
    """The launch was carried out and its answer broke: asked again, it is the same launch.

    Where every answer was lost, the next launch first finds out what that one has brought: it is what there
    is, and never more are rented than are wanted.
    """
    place.refuse("lost", 1)

    async def scene() -> None:
        provider = place.provider()
        await provider.start()
        reply = await provider.request(2, TOKENS[0])
        assert {one.name for one in reply.instances} == place.live()
        assert len(place.live()) == 2
        mend = place.refuse("lost")
        with pytest.raises(CloudError):
            await provider.request(2, TOKENS[1])
        with pytest.raises(CloudError):
            await provider.request(2, TOKENS[2])
        mend()
        again = await provider.request(2, TOKENS[3])
        assert {one.token for one in again.instances} == {TOKENS[1]}
        assert (len(again.instances), again.refused) == (2, 0)
        assert await living(provider) == place.live()
        assert len(place.live()) == 4
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

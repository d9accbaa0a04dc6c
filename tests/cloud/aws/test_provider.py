"""The AWS provider against a stand-in that follows EC2's own model."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from cloud.aws.api import Api
from cloud.aws.launch_record import LaunchRecord
from cloud.aws.market import check_quota, offers
from cloud.aws.provider import AwsProvider
from cloud.aws.region import Region
from cloud.aws.settings import AwsSettings
from cloud.aws.sweep import end_launch, replay_requests, terminate_until_gone
from cloud.ended import has_ended
from cloud.provider import CloudError, CredentialsError, MaybeStillRunningError, QuotaError
from cloud.types import InstanceState, Notice, NoticeKind
from tests.cloud.aws.front import Front
from tests.cloud.aws.settings import aws_settings

TYPE = "g4dn.xlarge"


def settings(**changes: Any) -> AwsSettings:
    """The shipped ones for one type, with short times."""
    times = {"cool_down_s": 5, "describe_s": 0.2, "close_s": 5, **changes.pop("times", {})}
    return aws_settings(instance_types=[TYPE], times=times, **changes)


def provider(
    tmp_path: Path, pauses: list[float] | None = None, smallest: int = 1, **changes: Any
) -> AwsProvider:
    """A provider whose API calls never sleep."""
    chosen = settings(**changes)
    api = Api(pause=(pauses if pauses is not None else []).append)
    found, vpc = offers(api, chosen, 4)
    record = LaunchRecord.at(tmp_path / "aws", "job", api.region)
    region = Region(api, vpc, found[0].pools)
    return AwsProvider([region], chosen, record, tmp_path / "aws", tmp_path, smallest)


def test_a_life_from_launch_to_termination(ec2: Front, tmp_path: Path) -> None:
    """Instances are tagged, described, reached by the pinned key, and gone in the end with their template."""

    async def scene() -> None:
        one = provider(tmp_path, smallest=2)
        await one.start()
        reply = await one.request(3, "t1")
        assert (len(reply.instances), reply.refused) == (3, 0)
        assert await one.request(3, "t1") == reply
        assert len(ec2.live()) == 3
        states = {instance.state for instance in await one.describe()}
        assert states == {InstanceState.RUNNING}
        tags = {tag["key"]: tag["value"] for tag in ec2.live()[0].get_tags()}
        assert (tags["parcae:job"], tags["parcae:token"]) == ("job", "t1")
        (fleet,) = ec2.actions("CreateFleet")
        assert fleet["SpotOptions"]["MinTargetCapacity"] == 2
        assert "MaxPrice" not in str(fleet)
        await one.close()
        assert ec2.live() == []
        assert {instance.state for instance in await one.describe()} == {InstanceState.TERMINATED}
        assert ec2.actions("DeleteLaunchTemplate")
        await one.close()

    asyncio.run(scene())


def test_a_second_job_finds_what_the_first_made(ec2: Front, tmp_path: Path) -> None:
    """Key pair and security group are made once and found again; who lets others in has another group."""

    async def scene() -> None:
        for name, ssh_from in (("a", "0.0.0.0/0"), ("b", "0.0.0.0/0"), ("c", "203.0.113.7/32")):
            one = provider(tmp_path, ssh_from=ssh_from)
            one._record = LaunchRecord.at(tmp_path / name, name, "us-east-1")
            await one.start()
        assert len(ec2.actions("ImportKeyPair")) == 1
        assert len(ec2.actions("CreateSecurityGroup")) == 2
        templates = [request["LaunchTemplateData"] for request in ec2.actions("CreateLaunchTemplate")]
        first, second, third = [group for template in templates for group in template["SecurityGroupIds"]]
        assert first == second != third
        doors = [
            door["CidrIp"]
            for request in ec2.actions("AuthorizeSecurityGroupIngress") if request["GroupId"] == third
            for rule in request["IpPermissions"] for door in rule.get("IpRanges", [])
        ]  # fmt: skip
        assert doors == ["203.0.113.7/32"]

    asyncio.run(scene())


def test_stock_out_everywhere_rests_and_says_so(ec2: Front, tmp_path: Path) -> None:
    """No pool has anything: one round of calls, then none until the pools have rested."""
    ec2.default_capacity = 0

    async def scene() -> None:
        one = provider(tmp_path)
        await one.start()
        reply = await one.request(2, "t1")
        assert reply.instances == ()
        assert "no capacity in g4dn.xlarge in us-east-1a" in reply.shortage
        assert "InsufficientInstanceCapacity" in reply.shortage
        assert "asking again in 5 s" in reply.shortage
        calls = len(ec2.actions("CreateFleet"))
        assert calls == 1
        await one.request(2, "t2")
        assert len(ec2.actions("CreateFleet")) == calls

    asyncio.run(scene())


def test_an_unknown_error_sends_us_to_another_pool(ec2: Front, tmp_path: Path) -> None:
    """A code that nobody has heard of closes the pools for a while, and is no traceback."""
    ec2.fault("CreateFleet", "ZoneWasEatenByAWolf")

    async def scene() -> None:
        one = provider(tmp_path)
        await one.start()
        reply = await one.request(2, "t1")
        assert "ZoneWasEatenByAWolf" in reply.shortage

    asyncio.run(scene())


def test_throttling_is_waited_out_with_the_same_token(ec2: Front, tmp_path: Path) -> None:
    """Two refusals by the rate limiter: two growing pauses, one fleet."""
    ec2.fault("CreateFleet", "RequestLimitExceeded", status=503, times=2)
    pauses: list[float] = []

    async def scene() -> None:
        one = provider(tmp_path, pauses)
        await one.start()
        assert len((await one.request(1, "t1")).instances) == 1
        assert len(pauses) == 2
        assert {fleet["ClientToken"] for fleet in ec2.actions("CreateFleet")} == {"t1-0"}
        assert len(ec2.live()) == 1

    asyncio.run(scene())


def test_an_answer_that_is_lost_rents_nothing_twice(ec2: Front, tmp_path: Path) -> None:
    """The launch happened but its answer broke: the repeated call brings the same instances."""
    ec2.fault("CreateFleet", "InternalError", status=500, after=True)

    async def scene() -> None:
        one = provider(tmp_path)
        await one.start()
        reply = await one.request(2, "t1")
        assert len(reply.instances) == 2
        assert {instance.id for instance in reply.instances} == {found.id for found in ec2.live()}

    asyncio.run(scene())


@pytest.mark.parametrize("code", ["MaxSpotInstanceCountExceeded", "VcpuLimitExceeded"])
def test_a_quota_is_named(ec2: Front, tmp_path: Path, code: str) -> None:
    """A launch that the account's limit refuses raises at once, with the quota's name."""
    ec2.fault("CreateFleet", code)

    async def scene() -> None:
        one = provider(tmp_path)
        await one.start()
        with pytest.raises(QuotaError, match="All G and VT Spot Instance Requests"):
            await one.request(2, "t1")

    asyncio.run(scene())


def test_a_quota_that_can_never_be_met_is_found_before_anything_is_made(ec2: Front) -> None:
    """4 vCPUs each, two needed, 4 allowed: refused with the arithmetic."""
    ec2.quota_vcpus = 4
    with pytest.raises(QuotaError, match=r"2 x g4dn.xlarge need 8 vCPUs, 'All G and VT Spot.*allows 4"):
        check_quota(Api(), [TYPE], 2)
    check_quota(Api(), [TYPE], 1)


def test_instances_may_stay_unseen_for_a_while(ec2: Front, tmp_path: Path) -> None:
    """What a launch has named is booting until DescribeInstances knows it."""
    ec2.invisible_s = 60.0

    async def scene() -> None:
        one = provider(tmp_path)
        await one.start()
        await one.request(2, "t1")
        assert [instance.state for instance in await one.describe()] == [InstanceState.BOOTING] * 2
        ec2.invisible_s = 0.0
        one._looked_s = 0.0
        assert [instance.state for instance in await one.describe()] == [InstanceState.RUNNING] * 2

    asyncio.run(scene())


def test_terminated_is_what_the_api_calls_so(ec2: Front, tmp_path: Path) -> None:
    """An instance that is shutting down is waited for, and reported where the wait is too long."""
    ec2.shutting_down_s = 60.0

    async def scene() -> None:
        one = provider(tmp_path, times={"close_s": 0.5})
        await one.start()
        await one.request(1, "t1")
        with pytest.raises(MaybeStillRunningError, match=r"does not call these terminated: i-"):
            await one.close()
        ec2.shutting_down_s = 0.0
        await one.close()

    asyncio.run(scene())


def test_an_interruption_is_seen_and_its_pool_rests(ec2: Front, tmp_path: Path) -> None:
    """The API's word alone tells of an end; the pool that took the instance back is left alone."""

    async def scene() -> None:
        one = provider(tmp_path, zones=["us-east-1a"])
        await one.start()
        reply = await one.request(1, "t1")
        ec2.interrupt(reply.instances[0].id)
        assert [instance.state for instance in await one.describe()] == [InstanceState.TERMINATED]
        assert "interrupted" in (await one.request(1, "t2")).shortage

    asyncio.run(scene())


def test_a_launch_in_flight_is_waited_for_by_the_end(ec2: Front, tmp_path: Path) -> None:
    """The job is torn down while CreateFleet is under way: what it brings is terminated too."""
    entered, go_on = threading.Event(), threading.Event()

    def hold(action: str) -> None:
        if action == "CreateFleet":
            entered.set()
            go_on.wait(10)

    ec2.hold = hold

    async def scene() -> None:
        one = provider(tmp_path)
        await one.start()
        request = asyncio.create_task(one.request(2, "t1"))
        await asyncio.to_thread(entered.wait, 10)
        request.cancel()
        closing = asyncio.create_task(one.close())
        await asyncio.sleep(0)
        go_on.set()
        await closing
        assert len(ec2.actions("CreateFleet")) == 1
        assert ec2.live() == []
        assert len(ec2.backend.all_instances()) == 2

    asyncio.run(scene())


def test_a_launch_that_takes_too_long_keeps_nobody_else_alive(ec2: Front, tmp_path: Path) -> None:
    """The end does not wait for ever: what is there ends, and a sweep mends the doubt."""
    entered, go_on = threading.Event(), threading.Event()

    def hold(action: str) -> None:
        if action == "CreateFleet":
            entered.set()
            go_on.wait(20)

    async def scene() -> None:
        one = provider(tmp_path)
        one.in_flight_s = 0.05
        await one.start()
        await one.request(2, "t1")
        ec2.hold = hold
        late = asyncio.create_task(one.request(1, "t2"))
        await asyncio.to_thread(entered.wait, 10)
        with pytest.raises(MaybeStillRunningError, match="a launch is still under way"):
            await one.close()
        assert ec2.live() == []
        assert not has_ended(tmp_path / "aws"), "else nobody would look again"
        go_on.set()
        await asyncio.gather(late, return_exceptions=True)

    asyncio.run(scene())
    assert len(ec2.backend.all_instances()) in (2, 3)  # the template is gone: EC2 may refuse by now
    end_launch(tmp_path / "aws", 5.0)
    assert (ec2.live(), has_ended(tmp_path / "aws")) == ([], True)


def test_expired_credentials_leave_a_doubt(ec2: Front, tmp_path: Path) -> None:
    """Without credentials nothing can be ended: the error says so and what to do."""

    async def scene() -> None:
        one = provider(tmp_path)
        await one.start()
        await one.request(1, "t1")
        fault = ec2.fault("*", "ExpiredToken", times=1000)
        with pytest.raises(CredentialsError, match="ExpiredToken"):
            await one.describe()
        with pytest.raises(MaybeStillRunningError, match=r"i-\w+.*shut themselves down"):
            await one.close()
        fault.times = 0
        await one.close()
        assert ec2.live() == []

    asyncio.run(scene())


def test_a_successor_finds_what_a_crash_left(ec2: Front, tmp_path: Path) -> None:
    """Killed after CreateFleet, before anybody noted its answer, and not yet visible: replayed, and ended."""
    ec2.fault("CreateFleet", "ExpiredToken", after=True)

    async def crash() -> None:
        one = provider(tmp_path)
        await one.start()
        await one.request(2, "t1")

    with pytest.raises(CloudError):
        asyncio.run(crash())
    assert len(ec2.live()) == 2
    ec2.invisible_s = 0.5
    record = LaunchRecord.read(tmp_path / "aws" / "launch.json")
    known = replay_requests(Api(), tmp_path / "aws")
    assert known == {instance.id for instance in ec2.live()}
    terminate_until_gone(Api(), record.owner, known, 10.0)
    assert ec2.live() == []


def test_only_this_launch_is_ended(ec2: Front, tmp_path: Path) -> None:
    """Instances of another launch of the same name stay."""

    async def scene() -> None:
        mine, other = provider(tmp_path / "a"), provider(tmp_path / "b")
        for token, one in (("t1", mine), ("t2", other)):
            await one.start()
            await one.request(1, token)
        await mine.close()
        assert len(ec2.live()) == 1

    asyncio.run(scene())


def test_the_api_tells_of_interruptions_too(ec2: Front, tmp_path: Path) -> None:
    """A spot request that is marked for termination is a notice of two minutes."""

    async def scene() -> None:
        one = provider(tmp_path)
        await one.start()
        reply = await one.request(2, "t1")
        await one.describe()
        assert one.notices() == {}
        ec2.marked[reply.instances[0].id] = 1_800_000_000.0
        one._looked_s = 0.0
        await one.describe()
        notice = Notice(NoticeKind.INTERRUPTION, 1_800_000_120.0)
        assert one.notices() == {reply.instances[0].id: notice}

    asyncio.run(scene())

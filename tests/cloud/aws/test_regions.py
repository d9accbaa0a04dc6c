"""Several regions, and notices by way of EventBridge, against the stand-in."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cloud.aws.api import Api
from cloud.aws.event_queue import QueueWatch
from cloud.aws.event_requests import INTERRUPTION, REBALANCE, notice_of
from cloud.aws.launch_record import LaunchRecord, RegionPools, Rental
from cloud.aws.market import offers
from cloud.aws.provider import AwsProvider
from cloud.aws.region import Region, queue_region
from cloud.aws.settings import AwsSettings
from cloud.aws.sweep import end_launch
from cloud.types import Notice, NoticeKind
from tests.cloud.aws.front import Front
from tests.cloud.aws.settings import aws_settings

TYPE = "g4dn.xlarge"
EAST, WEST = "us-east-1", "us-west-2"


def settings(**changes: Any) -> AwsSettings:
    """Two regions, one type, short times."""
    times = {"cool_down_s": 5, "describe_s": 0.2, "close_s": 5}
    return aws_settings(instance_types=[TYPE], regions=[EAST, WEST], times=times, **changes)


def provider(tmp_path: Path, smallest: int = 1, **changes: Any) -> AwsProvider:
    """The east first."""
    chosen = settings(**changes)
    pools = []
    for name in (EAST, WEST):
        found, vpc = offers(Api(name), chosen, 2)
        pools.append(RegionPools(name, vpc, found[0].pools, dict(found[0].scores)))
    rental = Rental("T4", 1, 1, tuple(pools))
    folder = tmp_path / "aws"
    record = LaunchRecord.at(folder, "job", EAST, chosen.notices == "eventbridge", rental)
    assert LaunchRecord.read(folder / "launch.json") == record
    regions = [Region(Api(one.region), one.vpc, one.plans) for one in rental.regions]
    return AwsProvider(regions, chosen, record, folder, tmp_path, smallest)


def close_zones(front: Front, region: str, left: int = 0) -> None:
    """So much is left of each of a region's pools."""
    for zone in front.backends[region].describe_availability_zones():
        front.capacity[TYPE, zone.name] = left


def zones(instances: Any) -> set[str]:
    """Where they are."""
    return {one.pool.zone[:-1] for one in instances}


def test_a_region_without_capacity_is_left_for_the_next(ec2: Front, tmp_path: Path) -> None:
    """Nothing is held: the same request is made in the west, with a key, group and template of its own."""
    close_zones(ec2, EAST)

    async def scene() -> None:
        one = provider(tmp_path)
        await one.start()
        reply = await one.request(2, "t1")
        assert zones(reply.instances) == {WEST}
        assert zones(await one.describe()) == {WEST}
        assert ec2.regions_of("CreateFleet") == [EAST, WEST]
        for action in ("ImportKeyPair", "CreateSecurityGroup", "CreateLaunchTemplate"):
            assert ec2.regions_of(action) == [EAST, WEST]
        await one.close()
        assert ec2.live() == []
        assert sorted(ec2.regions_of("DeleteLaunchTemplate")) == [EAST, WEST]

    asyncio.run(scene())


def test_nodes_of_one_job_are_never_in_two_regions(ec2: Front, tmp_path: Path) -> None:
    """While one is held in the east, the west is not asked; when the last one there is gone, it is."""
    close_zones(ec2, EAST)
    ec2.capacity[TYPE, f"{EAST}a"] = 1

    async def scene() -> None:
        one = provider(tmp_path)
        await one.start()
        reply = await one.request(2, "t1")
        assert (zones(reply.instances), reply.refused) == ({EAST}, 1)
        assert WEST not in ec2.regions_of("CreateFleet")
        refused = await one.request(1, "t2")
        assert refused.instances == ()
        assert "us-east-1a" in refused.shortage
        assert WEST not in refused.shortage
        ec2.interrupt(reply.instances[0].id)
        one._looked_s = 0.0
        await one.describe()
        assert zones((await one.request(2, "t3")).instances) == {WEST}

    asyncio.run(scene())


def test_a_sweep_goes_over_every_region_that_was_used(ec2: Front, tmp_path: Path) -> None:
    """The launcher died with nodes in the west: `down` and `gc` end them by what is on the disk."""
    close_zones(ec2, EAST)

    async def crash() -> None:
        one = provider(tmp_path)
        await one.start()
        await one.request(2, "t1")

    asyncio.run(crash())
    assert len(ec2.live()) == 2
    ec2.invisible_s = 0.5
    assert len(end_launch(tmp_path / "aws", 5.0)) == 2
    assert ec2.live() == []
    assert end_launch(tmp_path / "aws", 5.0) == []


def test_a_queue_brings_notices_and_is_removed(
    ec2: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made in the region that is rented in; messages twice or about others' instances change nothing."""
    monkeypatch.setattr("cloud.aws.event_queue.LONG_POLL_S", 1)

    async def scene() -> None:
        one = provider(tmp_path, notices="eventbridge")
        await one.start()
        first, second = (await one.request(2, "t1")).instances
        assert len(ec2.services.queues()) == 2
        ec2.announce(first.id, REBALANCE)
        for _ in range(2):
            ec2.announce(first.id, INTERRUPTION)
        ec2.services.announce(EAST, "i-of-somebody-else", INTERRUPTION)
        ec2.announce(second.id, REBALANCE)
        async with asyncio.timeout(20):
            while len(one.notices()) < 2 or one.notices()[first.id].kind is NoticeKind.REBALANCE:
                await asyncio.sleep(0.05)
                one._looked_s = 0.0
                await one.describe()
        assert one.notices()[second.id] == Notice(NoticeKind.REBALANCE, None)
        assert set(one.notices()) == {first.id, second.id}
        await one.close()
        assert ec2.services.queues() == []

    asyncio.run(scene())


def test_a_crash_leaves_no_queue(ec2: Front, tmp_path: Path) -> None:
    """The sweep removes rule and queue with the launch."""

    async def crash() -> None:
        await provider(tmp_path, notices="eventbridge").start()

    asyncio.run(crash())
    assert len(ec2.services.queues()) == 2
    end_launch(tmp_path / "aws", 5.0)
    assert ec2.services.queues() == []


def test_a_queue_of_the_users_keeps_what_is_said_of_others(ec2: Front) -> None:
    """Only messages about our own instances are deleted: somebody else may listen, too."""
    api = Api(EAST)
    url = api.call("create_queue", {"QueueName": "mine"}, "sqs")["QueueUrl"]
    for name in ("i-ours", "i-theirs"):
        detail = {"instance-id": name}
        event = {"detail-type": INTERRUPTION, "time": "2026-01-01T00:00:00Z", "detail": detail}
        api.call("send_message", {"QueueUrl": url, "MessageBody": json.dumps(event)}, "sqs")
    watch = QueueWatch(api, url, False, lambda name: name == "i-ours")
    watch._poll()
    assert watch.heard()["i-ours"] == Notice(NoticeKind.INTERRUPTION, 1767225720.0)
    assert len(ec2.actions("DeleteMessage")) == 1


@pytest.mark.parametrize(
    "body",
    ["", "[]", '{"detail-type": "EC2 Instance State-change Notification", "detail": {"instance-id": "i"}}'],
)
def test_other_messages_say_nothing(body: str) -> None:
    """Nonsense and other events are no notices."""
    assert notice_of(body) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"region": EAST}, "regions: there is a region, too"),
        ({"notices": "pigeon"}, 'notices: must be "metadata" or "eventbridge"'),
        ({"notices": "eventbridge", "queue_url": "https://x"}, "queue_url: with notices"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], said: str) -> None:
    """The message names the key."""
    with pytest.raises(ValueError, match=said):
        settings(**changes)


def test_a_queues_region_is_in_its_url() -> None:
    """It may be another than the fleet's."""
    assert queue_region("https://sqs.eu-west-1.amazonaws.com/1/q") == "eu-west-1"
    assert queue_region("http://127.0.0.1:5000/1/q") == ""

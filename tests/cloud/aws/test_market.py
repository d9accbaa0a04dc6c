"""What a running job asks of EC2's market, how often, and what it makes of the answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cloud.aws import market
from cloud.aws.api import Api
from cloud.aws.launch_record import LaunchRecord
from cloud.aws.marked import MOST_VALUES
from cloud.aws.market import offers
from cloud.aws.provider import AwsProvider
from cloud.aws.region import Region
from cloud.aws.settings import AwsSettings
from cloud.provider import CloudError
from cloud.rented import MARKET_EVERY_S
from tests.cloud.aws.front import Front
from tests.cloud.aws.settings import aws_settings

TYPE = "g4dn.xlarge"
TYPES = [TYPE, "g5.xlarge", "g6.xlarge"]  # AWS calls a set of fewer types unlikely
EAST, WEST = "us-east-1", "us-west-2"
ZONES = ["us-east-1a", "us-east-1b"]
WANTED = 4


def settings(**changes: Any) -> AwsSettings:
    """Three types in two zones."""
    return aws_settings(**{"instance_types": TYPES, "zones": ZONES, **changes})


def region(name: str = EAST, **changes: Any) -> Region:
    """As a launch has it, with the pools of the T4."""
    api = Api(name, pause=lambda pause_s: None)
    found, vpc = offers(api, settings(**changes), WANTED, 1)
    (offer,) = [one for one in found if one.gpu == "T4"]
    return Region(api, vpc, offer.pools)


def provider(regions: list[Region], tmp_path: Path, wanted: int = WANTED, **changes: Any) -> AwsProvider:
    """Of a launch in the first of them."""
    folder = tmp_path / "aws"
    record = LaunchRecord.at(folder, "job", regions[0].name)
    return AwsProvider(regions, settings(**changes), record, folder, tmp_path, wanted=wanted, gpus=1)


def fill(front: Front, zone: str, left: int) -> None:
    """So much is left there of every type; the stand-in's score follows."""
    front.capacity.update({(kind, zone): left for kind in TYPES})


def test_a_pool_has_its_own_price_and_its_zones_score(ec2: Front) -> None:
    """Scores come by zone id, which is another in every account: each is that of the right zone."""
    ids = {zone.name: zone.zone_id for zone in ec2.backend.describe_availability_zones()}
    assert not any(name.endswith(zone_id[-1]) for name, zone_id in ids.items())
    ours = region()
    fill(ec2, ZONES[0], 3)
    fill(ec2, ZONES[1], 2)
    ec2.prices.update({(TYPE, ZONES[0]): 0.21, (TYPE, ZONES[1]): 0.19})
    prices, scores = ours.ask_market(settings(), WANTED, 1)
    assert prices[TYPE, ZONES[0]] == pytest.approx(0.21)
    assert prices[TYPE, ZONES[1]] == pytest.approx(0.19)
    assert scores == {(TYPE, ZONES[0]): 7.0, (TYPE, ZONES[1]): 5.0}
    assert {kind for kind, _ in prices} == {TYPE}, "nobody asks for prices of what was not chosen"


def test_scores_are_asked_with_the_launchs_own_question(ec2: Front) -> None:
    """AWS rations new questions: same types, count and region as before; none that means nothing."""
    ours = region()
    ours.ask_market(settings(), WANTED, 1)
    first, again = ec2.actions("GetSpotPlacementScores")
    assert first == again
    assert first == {
        "InstanceTypes": TYPES, "TargetCapacity": WANTED, "SingleAvailabilityZone": True,
        "RegionNames": [EAST],
    }  # fmt: skip
    prices, scores = ours.ask_market(settings(), 0, 1)
    assert (bool(prices), scores) == (True, {})
    prices, scores = ours.ask_market(settings(instance_types=TYPES[:2]), WANTED, 1)
    assert (bool(prices), scores) == (True, {})
    assert len(ec2.actions("GetSpotPlacementScores")) == 2


def test_the_market_is_asked_four_times_an_hour_whatever_the_clock_says(ec2: Front, tmp_path: Path) -> None:
    """By the clock that nobody sets back; without scores there are prices, and nobody asks again at once."""
    one = provider([region()], tmp_path)
    now_s = 1000.0
    one._steady, one._clock = lambda: now_s, lambda: 0.0
    asked = len(ec2.actions("GetSpotPlacementScores"))

    def ask() -> int:
        asyncio.run(one.ask_market())
        return len(ec2.actions("GetSpotPlacementScores")) - asked

    fill(ec2, ZONES[0], 3)
    assert (ask(), ask()) == (1, 1)
    tally = {found.key: found for found in one.tallies()}[f"{TYPE}/{ZONES[0]}"]
    assert (tally.spot_usd_per_hour, tally.score) == (pytest.approx(0.2), 7.0)
    ec2.prices[TYPE, ZONES[0]] = 0.25
    ec2.fault("GetSpotPlacementScores", "MaxConfigLimitExceeded")
    now_s += MARKET_EVERY_S - 1
    assert ask() == 1
    now_s += 1
    assert (ask(), ask()) == (2, 2)
    tally = {found.key: found for found in one.tallies()}[f"{TYPE}/{ZONES[0]}"]
    assert (tally.spot_usd_per_hour, tally.score) == (pytest.approx(0.25), 7.0), "the last score stands"


def test_only_regions_that_are_used_are_asked(ec2: Front, tmp_path: Path) -> None:
    """The west is a second choice, where nothing was made yet."""
    names = [f"{name}{zone}" for name in (EAST, WEST) for zone in "ab"]
    regions = [region(name, zones=names) for name in (EAST, WEST)]
    one = provider(regions, tmp_path, zones=names)
    before = ec2.regions_of("DescribeSpotPriceHistory")
    asyncio.run(one.ask_market())
    assert ec2.regions_of("DescribeSpotPriceHistory")[len(before) :] == [EAST]


def test_what_is_not_sold_as_spot_does_not_pass_for_free(ec2: Front) -> None:
    """A pool without a spot price is left out; where none has one, that is said."""
    ec2.prices[TYPE, ZONES[0]] = 0.0
    found, _ = offers(Api(), settings(instance_types=[TYPE]), WANTED)
    assert [plan.pool.zone for offer in found for plan in offer.pools] == [ZONES[1]]
    assert found[0].spot_usd_per_hour == pytest.approx(0.2)
    ec2.prices[TYPE, ZONES[1]] = 0.0
    with pytest.raises(CloudError, match=r"no zone of .* offers any of g4dn.xlarge as spot"):
        offers(Api(), settings(instance_types=[TYPE]), WANTED)


@pytest.mark.parametrize(
    ("setting", "fact", "said"),
    [("efa", "efa", "and EFA"), ("placement_group", "cluster", "and cluster placement groups")],
)
def test_what_a_type_does_not_have_is_not_asked_of_it(
    ec2: Front, monkeypatch: pytest.MonkeyPatch, setting: str, fact: str, said: str
) -> None:
    """With the adapter or the placement group wished for, only types that have it are rented."""
    from dataclasses import replace

    known = market.type_facts

    def facts(api: Api, types: Any) -> Any:
        return {name: replace(one, **{fact: name != TYPE}) for name, one in known(api, types).items()}

    monkeypatch.setattr(market, "type_facts", facts)
    found, _ = offers(Api(), settings(**{setting: True}), WANTED)
    assert {plan.pool.instance_type for offer in found for plan in offer.pools} == set(TYPES[1:])
    with pytest.raises(CloudError, match=said):
        offers(Api(), settings(instance_types=[TYPE], **{setting: True}), WANTED)


def test_a_large_fleet_is_asked_about_in_parts(ec2: Front, tmp_path: Path) -> None:
    """A filter takes two hundred values: marks of all instances are seen all the same."""
    one = provider([region()], tmp_path)
    names = [f"i-{number:017x}" for number in range(2 * MOST_VALUES + 1)]
    ec2.marked.update({names[0]: 1.0, names[-1]: 2.0})
    assert set(one._announced(one._regions[0], names)) == {names[0], names[-1]}
    sizes = [
        len(next(one["Values"] for one in request["Filters"] if one["Name"] == "instance-id"))
        for request in ec2.actions("DescribeSpotInstanceRequests")
    ]
    assert sizes == [MOST_VALUES, MOST_VALUES, 1]

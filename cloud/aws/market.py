"""What could be rented: GPUs of the types, zones that offer them, prices, placement scores and quotas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cloud.aws.api import Api, ApiError
from cloud.aws.errors import Verdict, quota_of
from cloud.aws.requests import PoolPlan
from cloud.aws.settings import AwsSettings
from cloud.provider import CloudError, QuotaError
from cloud.types import Pool

_MIB = 1024 * 1024
_PRODUCT = "Linux/UNIX"
# GetSpotPlacementScores calls a set of fewer types unlikely, whatever they are.
TYPES_FOR_SCORES = 3


@dataclass(frozen=True)
class TypeFacts:
    """An instance type: its GPU's name, memory in bytes, and what it counts against the quota."""

    name: str
    gpu: str
    gpus: int
    gpu_memory_bytes: int
    vcpus: int
    efa: bool
    cluster: bool  # may be in a cluster placement group


@dataclass(frozen=True)
class Offer:
    """One GPU, `gpus` of them a machine, with all its pools, the cheapest first.

    `scores` are 1 to 10, by zone.
    """

    gpu: str
    gpu_memory_bytes: int
    pools: tuple[PoolPlan, ...]
    scores: Mapping[str, int]
    gpus: int = 1

    @property
    def name(self) -> str:
        """The GPU, and how many, where a machine has several."""
        return self.gpu if self.gpus == 1 else f"{self.gpus} x {self.gpu}"

    @property
    def spot_usd_per_hour(self) -> float:
        """The cheapest pool's price."""
        return min(plan.pool.spot_usd_per_hour for plan in self.pools)


def type_facts(api: Api, types: Sequence[str]) -> dict[str, TypeFacts]:
    """The types that the region knows, with a GPU or without."""
    rows = api.pages(
        "describe_instance_types",
        {"Filters": [{"Name": "instance-type", "Values": list(types)}]},
        "InstanceTypes",
    )
    found = {}
    for row in rows:
        gpus = row.get("GpuInfo", {}).get("Gpus", [])
        first = gpus[0] if gpus else {}
        found[row["InstanceType"]] = TypeFacts(
            row["InstanceType"],
            first.get("Name", ""),
            sum(gpu.get("Count", 0) for gpu in gpus),
            first.get("MemoryInfo", {}).get("SizeInMiB", 0) * _MIB,
            row.get("VCpuInfo", {}).get("DefaultVCpus", 0),
            bool(row.get("NetworkInfo", {}).get("EfaSupported", False)),
            "cluster" in row.get("PlacementGroupInfo", {}).get("SupportedStrategies", []),
        )
    return found


def subnets_by_zone(api: Api, settings: AwsSettings) -> tuple[dict[str, str], dict[str, str], str]:
    """Default subnet by zone name, zone id by zone name, and the VPC.

    Raises:
        CloudError: there is no default VPC.
    """
    zones = api.call("describe_availability_zones", {})["AvailabilityZones"]
    ids = {zone["ZoneName"]: zone.get("ZoneId", "") for zone in zones if zone.get("State") == "available"}
    rows = api.pages(
        "describe_subnets", {"Filters": [{"Name": "default-for-az", "Values": ["true"]}]}, "Subnets"
    )
    wanted = settings.zones or tuple(ids)
    subnets = {row["AvailabilityZone"]: row["SubnetId"] for row in rows if row["AvailabilityZone"] in wanted}
    if not subnets:
        raise CloudError(
            f"aws: {api.region} has no default subnet in {', '.join(wanted)}: run "
            "`aws ec2 create-default-vpc`, or name other zones or another region in the file of --fleet"
        )
    return dict(sorted(subnets.items())), ids, str(rows[0]["VpcId"])


def spot_prices(api: Api, types: Sequence[str], now: datetime | None = None) -> dict[tuple[str, str], float]:
    """The newest spot price, USD an hour, by type and zone."""
    start = (now or datetime.now(UTC)) - timedelta(hours=3)
    rows = api.pages(
        "describe_spot_price_history",
        {"InstanceTypes": list(types), "ProductDescriptions": [_PRODUCT], "StartTime": start},
        "SpotPriceHistory",
    )
    newest: dict[tuple[str, str], tuple[datetime, float]] = {}
    for row in rows:
        key = row["InstanceType"], row["AvailabilityZone"]
        if key not in newest or row["Timestamp"] > newest[key][0]:
            newest[key] = row["Timestamp"], float(row["SpotPrice"])
    return {key: price for key, (_, price) in newest.items()}


def offered(api: Api, types: Sequence[str]) -> set[tuple[str, str]]:
    """Which types which zones have at all."""
    rows = api.pages(
        "describe_instance_type_offerings",
        {
            "LocationType": "availability-zone",
            "Filters": [{"Name": "instance-type", "Values": list(types)}],
        },
        "InstanceTypeOfferings",
    )
    return {(row["InstanceType"], row["Location"]) for row in rows}


def placement_scores(
    api: Api, types: Sequence[str], count: int, zone_ids: Mapping[str, str]
) -> dict[str, int]:
    """How likely `count` instances are, 1 to 10, by zone name; empty where AWS does not say.

    The number of questions a day is limited, so a refusal is no trouble.
    """
    if len(types) < TYPES_FOR_SCORES:
        return {}
    request = {
        "InstanceTypes": list(types),
        "TargetCapacity": count,
        "SingleAvailabilityZone": True,
        "RegionNames": [api.region],
    }
    try:
        rows = api.pages("get_spot_placement_scores", request, "SpotPlacementScores")
    except ApiError:
        return {}
    names = {zone_id: name for name, zone_id in zone_ids.items()}
    return {
        names[row["AvailabilityZoneId"]]: int(row["Score"])
        for row in rows
        if row.get("AvailabilityZoneId") in names
    }


def eligible_types(api: Api, settings: AwsSettings, gpus: int | None = None) -> dict[str, TypeFacts]:
    """Those of the settings' types that the region has and that fit; `gpus` a machine, None: at least one."""
    return {
        name: fact
        for name, fact in type_facts(api, settings.instance_types).items()
        if fact.gpus >= 1
        and gpus in (None, fact.gpus)
        and settings.gpu in ("", fact.gpu)
        and (fact.efa or not settings.efa)
        and (fact.cluster or not settings.placement_group)
    }


def offers(
    api: Api, settings: AwsSettings, count: int, gpus: int | None = None
) -> tuple[tuple[Offer, ...], str]:
    """Every GPU that can be had (`gpus` of them a machine), cheapest pool first, and the VPC to rent in.

    A pool without a spot price is none: what is not sold there as spot must not pass for free.

    Raises:
        CloudError: no zone offers any of the types.
    """
    facts = eligible_types(api, settings, gpus)
    if not facts:
        how = f"{gpus} GPUs" if gpus else "a GPU"
        raise CloudError(
            f"aws: in {api.region} there is none of {', '.join(settings.instance_types)} with {how}"
            f"{f' of kind {settings.gpu}' if settings.gpu else ''}{' and EFA' if settings.efa else ''}"
            f"{' and cluster placement groups' if settings.placement_group else ''}: name others in the file "
            "of --fleet"
        )
    types = sorted(facts)
    subnets, zone_ids, vpc = subnets_by_zone(api, settings)
    where = offered(api, types)
    prices = spot_prices(api, types)
    scores = placement_scores(api, types, count, zone_ids)
    by_gpu: dict[tuple[str, int], list[PoolPlan]] = {}
    for name, fact in facts.items():
        for zone, subnet in subnets.items():
            if (name, zone) in where and (price := prices.get((name, zone), 0.0)) > 0:
                pool = Pool(zone, name, fact.gpus, price, on_demand_usd_per_hour(name))
                by_gpu.setdefault((fact.gpu, fact.gpus), []).append(PoolPlan(pool, subnet))
    if not by_gpu:
        raise CloudError(
            f"aws: no zone of {', '.join(subnets)} offers any of {', '.join(types)} as spot: name others in "
            "the file of --fleet"
        )

    def order(plan: PoolPlan) -> tuple[float, int, str]:
        return plan.pool.spot_usd_per_hour, -scores.get(plan.pool.zone, 0), plan.key

    made = []
    for (gpu, gpus), plans in by_gpu.items():
        memory_bytes = facts[plans[0].pool.instance_type].gpu_memory_bytes
        made.append(Offer(gpu, memory_bytes, tuple(sorted(plans, key=order)), scores, gpus))
    return tuple(sorted(made, key=lambda offer: (offer.spot_usd_per_hour, offer.gpu, offer.gpus))), vpc


def check_quota(api: Api, types: Iterable[str], at_least: int) -> None:
    """Fail now if the account may not even run the smallest useful fleet.

    Raises:
        QuotaError: it may not; the message names the quota.
    """
    facts = type_facts(api, list(types))
    limits: dict[str, float] = {}
    short = []
    for fact in facts.values():
        code, name = quota_of(fact.name)
        if code not in limits:
            try:
                reply = api.call(
                    "get_service_quota", {"ServiceCode": "ec2", "QuotaCode": code}, "service-quotas"
                )
            except ApiError as error:
                if error.verdict is Verdict.CREDENTIALS and error.code not in _MAY_NOT_ASK:
                    raise error.sorted from error
                return  # whoever may not read quotas learns of them when a launch is refused
            limits[code] = float(reply["Quota"]["Value"])
        if limits[code] >= fact.vcpus * at_least:
            return
        short.append(
            f"{at_least} x {fact.name} need {fact.vcpus * at_least} vCPUs, {name!r} ({code}) allows "
            f"{limits[code]:g}"
        )
    if short:
        raise QuotaError(
            f"aws: {'; '.join(short)}. Ask for more at https://console.aws.amazon.com/servicequotas/ (EC2)"
        )


_MAY_NOT_ASK = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")

# USD an hour in us-east-1, Linux. Used for what the same hours would have cost on demand, and nothing else:
# the price list API needs a permission that launchers rarely have.
_ON_DEMAND: Mapping[str, float] = {
    "g4dn.xlarge": 0.526, "g5.xlarge": 1.006, "g6.xlarge": 0.805, "g6e.xlarge": 1.861,
    "p3.2xlarge": 3.06, "p5.4xlarge": 6.88,
    "g4dn.12xlarge": 3.912, "g5.12xlarge": 5.672, "g6.12xlarge": 4.602, "g6e.12xlarge": 10.493,
    "g4dn.metal": 7.824, "g5.48xlarge": 16.288, "g6.48xlarge": 13.35, "g6e.48xlarge": 30.131,
}  # fmt: skip


def on_demand_usd_per_hour(instance_type: str) -> float:
    """The list price, 0 where we do not know it."""
    return _ON_DEMAND.get(instance_type, 0.0)

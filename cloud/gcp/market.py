"""Where to rent: the pools of a region, their prices, and how long instances last there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cloud.gcp.api import Api
from cloud.gcp.errors import ApiError, Verdict
from cloud.gcp.requests import capacity_history_request, capacity_request, last_part, preempted_request
from cloud.gcp.settings import GcpSettings
from cloud.provider import CloudError
from cloud.types import Pool


@dataclass(frozen=True)
class Prospect:
    """A pool, the model of its GPUs, and what the advice service says of it; None where it says nothing.

    `preempted_per_day` is the share of instances that were preempted a day, lately; `obtainability` is how
    likely the wanted number is to be had there, 0 to 1.
    """

    pool: Pool
    gpu: str
    preempted_per_day: float | None
    obtainability: float | None

    @property
    def rank(self) -> tuple[float, float]:
        """The less the better: unlikely pools last, then what an hour of work costs, losses included."""
        lost = min(self.preempted_per_day or 0.0, 0.9)
        return -(self.obtainability or 0.0), self.pool.spot_usd_per_hour / (1 - lost)


def prospects(api: Api, settings: GcpSettings, size: int) -> list[Prospect]:
    """The pools that exist, the best first.

    Raises:
        CloudError: there is none, or the API refused.
    """
    try:
        pools = [
            (Pool(zone, name, gpus, on_demand, on_demand), gpu)
            for name in dict.fromkeys(settings.machine_types)
            for on_demand in (on_demand_usd_per_hour(settings, name),)
            for zone, gpu, gpus in _zones(api, settings, name)
        ]
        if not pools:
            places = ", ".join(settings.zones) or settings.region or "no region"
            raise CloudError(
                f"gcp: none of {', '.join(settings.machine_types)} is offered in {places}; set region, zones "
                "or machine_types in the fleet's file"
            )
        likely = _obtainability(api, settings, size)
        found = [
            _prospect(api, settings, pool, gpu, likely.get((pool.zone, pool.instance_type)))
            for pool, gpu in pools
        ]
    except ApiError as error:
        raise error.sorted from error
    return sorted(found, key=lambda prospect: prospect.rank)


def on_demand_usd_per_hour(settings: GcpSettings, machine_type: str) -> float:
    """What the fleet's file says, 0 where it says nothing."""
    gpu = settings.machines.get(machine_type)
    return gpu.usd_per_hour if gpu is not None else 0.0


def _zones(api: Api, settings: GcpSettings, machine_type: str) -> list[tuple[str, str, int]]:
    """The zones of the region that offer a machine type, the model of the GPUs it has there, and how many.

    N1 machines come without; they get one, the fleet's `accelerator`.
    """
    request = {"project": api.project, "filter": f'name = "{machine_type}"'}
    found = [
        (last_part(zone), *_gpus(scoped.machine_types[0], settings))
        for zone, scoped in api.rows("MachineTypesClient", "aggregated_list", request)
        if scoped.machine_types
    ]
    return [
        (zone, gpu, gpus)
        for zone, gpu, gpus in sorted(found)
        if zone.rsplit("-", 1)[0] == settings.region and (not settings.zones or zone in settings.zones)
    ]


def _gpus(machine_type: Any, settings: GcpSettings) -> tuple[str, int]:
    for card in machine_type.accelerators:
        return card.guest_accelerator_type, card.guest_accelerator_count
    return settings.accelerator or machine_type.name, 1


def _prospect(api: Api, settings: GcpSettings, pool: Pool, gpu: str, obtainability: float | None) -> Prospect:
    """With its spot price and its preemption rate, where the service knows them (not for N1 with GPUs)."""
    try:
        reply = api.read(
            "AdviceClient", "capacity_history", capacity_history_request(api.project, settings.region, pool)
        )
    except ApiError as error:
        if error.verdict in (Verdict.CREDENTIALS, Verdict.QUOTA):
            raise
        return Prospect(pool, gpu, None, obtainability)
    rates = [record.preemption_rate for record in reply.preemption_history]
    prices = [_usd(record.list_price) for record in reply.price_history]
    if prices:
        pool = Pool(pool.zone, pool.instance_type, pool.gpus, prices[-1], pool.on_demand_usd_per_hour)
    return Prospect(pool, gpu, sum(rates[-7:]) / len(rates[-7:]) if rates else None, obtainability)


def _usd(money: Any) -> float:
    return float(money.units) + float(money.nanos) * 1e-9


def _obtainability(api: Api, settings: GcpSettings, size: int) -> dict[tuple[str, str], float]:
    """By zone and machine type; empty where the service says nothing."""
    try:
        request = capacity_request(api.project, settings.region, settings.machine_types, size)
        reply = api.read("AdviceClient", "capacity", request)
    except ApiError as error:
        if error.verdict in (Verdict.CREDENTIALS, Verdict.QUOTA):
            raise
        return {}
    found: dict[tuple[str, str], float] = {}
    for recommendation in reply.recommendations:
        for shard in recommendation.shards:
            key = last_part(shard.zone), last_part(shard.machine_type)
            found[key] = max(found.get(key, 0.0), recommendation.scores.obtainability)
    return found


@dataclass(frozen=True)
class Preemption:
    """One preemption that this project has suffered; `time_s` in Unix seconds."""

    time_s: float
    zone: str
    instance: str


def preemptions(api: Api, zones: list[str]) -> list[Preemption]:
    """The preemptions that the API still remembers in these zones, the oldest first.

    Raises:
        CloudError: the API refused.
    """
    try:
        found = [
            Preemption(datetime.fromisoformat(row.insert_time).timestamp(), zone, last_part(row.target_link))
            for zone in zones
            for row in api.rows("ZoneOperationsClient", "list", preempted_request(api.project, zone))
        ]
    except ApiError as error:
        raise error.sorted from error
    return sorted(found, key=lambda preemption: preemption.time_s)

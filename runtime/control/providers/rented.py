"""What the jobs on rented machines have in common: the choice of a machine, patience, and how nodes start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from cloud.anchor import AnchorPlan, BootFiles, anchor_type
from cloud.provider import CloudError
from cloud.rented import RentedProvider
from cloud.settings import AnchorType, FleetSettings, RentedTimes
from cloud.types import Instance, Pool
from runtime.control.fleet.deploy import PushedSources, check_booted
from runtime.control.fleet.node_link import LinkTimes
from runtime.control.job.job import LaunchRequest
from runtime.control.providers import ProviderSetup
from runtime.control.training.planner import first_plan, planner_config
from runtime.planning.errors import InputError
from runtime.planning.model import ModelSpec
from runtime.planning.placement import instances_needed
from runtime.planning.prior import PriorRates
from runtime.planning.profile import STATE_BYTES_PER_PARAM, Profile, estimated_profile

SWEEP_WITHIN_S = 600.0
Settings = TypeVar("Settings", bound=FleetSettings)


@dataclass(frozen=True)
class Candidate:
    """A kind of machine that could be rented: its name, its pools (the best first), the model on it."""

    name: str
    pools: tuple[Pool, ...]
    spec: ModelSpec

    @property
    def gpus(self) -> int:
        """The GPUs of one node."""
        return self.pools[0].gpus

    @property
    def dearest_usd_per_hour(self) -> float:
        """Of one node, where it costs most."""
        return max(pool.spot_usd_per_hour for pool in self.pools)


@dataclass(frozen=True)
class Choice:
    """The candidate that was chosen, how many nodes the user's limits allow, and what it was chosen for."""

    candidate: Candidate
    profile: Profile
    wanted: int
    samples_per_usd: float = 0.0

    @property
    def spec(self) -> ModelSpec:
        """The model as it trains there."""
        return self.candidate.spec

    @property
    def smallest(self) -> int:
        """The fewest nodes that can train."""
        return instances_needed(self.profile.layouts[0], self.candidate.gpus)


def read_settings(kind: type[Settings], request: LaunchRequest) -> Settings:
    """The request's fleet.

    Raises:
        InputError: a key is wrong.
    """
    try:
        return kind.parse(request.fleet)
    except ValueError as error:
        raise _wrong_settings(request, error) from error


def _wrong_settings(request: LaunchRequest, error: ValueError) -> InputError:
    return InputError(f"the settings of --cloud {request.cloud} (--fleet, templates/fleets): {error}")


def at_price(spec: ModelSpec, pool: Pool) -> ModelSpec:
    """The model on instances at this pool's prices."""
    price = replace(
        spec.price,
        spot_usd_per_hour=pool.spot_usd_per_hour,
        on_demand_usd_per_hour=pool.on_demand_usd_per_hour,
    )
    return replace(spec, price=price)


def choose(request: LaunchRequest, candidates: Iterable[Candidate]) -> Choice:
    """What trains most samples per dollar with the wanted number of nodes.

    Raises:
        InputError: no candidate can hold the model; the message shows the arithmetic for each.
    """
    refusals: list[str] = []
    best, best_value = None, -1.0
    for one in candidates:
        if request.gpus_per_node not in (None, one.gpus):
            refusals.append(f"{one.name}: --gpus-per-node is {request.gpus_per_node}, it has {one.gpus}")
            continue
        wanted = _affordable(request, one.dearest_usd_per_hour)
        profile = estimated_profile(one.spec, max(wanted, 1) * one.gpus)
        layout = profile.best(wanted * one.gpus)
        if layout is None:
            refusals.append(_refusal(one, profile, wanted, request))
            continue
        cheapest = min(pool.spot_usd_per_hour for pool in one.pools)
        usd_per_s = cheapest * instances_needed(layout, one.gpus) / 3600
        value = profile.samples_per_s(layout) / max(usd_per_s, 1e-9)
        if value > best_value:
            best, best_value = Choice(one, profile, wanted, value), value
    if best is None:
        raise InputError(f"{request.model} cannot be trained there: {'; '.join(refusals)}")
    return best


def _affordable(request: LaunchRequest, usd_per_hour: float) -> int:
    if request.max_usd_per_hour is None or usd_per_hour <= 0:
        return request.nodes
    return min(request.nodes, int(request.max_usd_per_hour / usd_per_hour))


def _refusal(one: Candidate, profile: Profile, wanted: int, request: LaunchRequest) -> str:
    if wanted < request.nodes and not wanted:
        price = one.dearest_usd_per_hour
        return f"{one.name}: one costs {price:g} USD an hour, --max-price-per-hour is below"
    if not profile.refused:
        needed = instances_needed(profile.layouts[0], one.gpus) if profile.layouts else None
        return f"{one.name}: needs at least {needed} nodes, {wanted} are wanted or affordable"
    deepest = max(profile.refused, key=lambda layout: (layout.stages, -layout.pipelines))
    return f"{one.name} with {wanted} nodes: {profile.refused[deepest]}"


def rented_setup(
    provider: RentedProvider,
    times: RentedTimes,
    choice: Choice,
    agent_start: BootedNode,
    market: Iterable[str] = (),
    prior: PriorRates | None = None,
) -> ProviderSetup:
    """How a job treats machines that it rents. Nodes cannot reach this machine but through SSH."""
    return ProviderSetup(
        provider,
        link_times=LinkTimes(
            grace_s=times.grace_s,
            boot_s=times.boot_s,
            agent_start_s=60.0,
            retry_s=times.retry_s,
            lease_s=times.lease_s,
            poll_s=times.notice_poll_s,
            close_s=times.close_s + 120.0,
            unready_s=times.boot_s,
        ),
        poll_s=times.describe_s,
        anchor_reachable=False,
        agent_start=agent_start,
        prior=prior,
        market=tuple(market),
        spec=choice.spec,
        wanted=choice.wanted,
        gpus=choice.candidate.gpus,
    )


def expectation(request: LaunchRequest, choice: Choice, prior: PriorRates | None = None) -> dict[str, Any]:
    """The part of a plan that no cloud decides: nodes, layout, and what to expect of them.

    Raises:
        InputError: there is no layout for so many nodes.
    """
    wanted, profile = choice.wanted, choice.profile
    request = replace(request, gpus_per_node=choice.candidate.gpus)
    layout, liveput = first_plan(planner_config(request, choice.spec, wanted, 1.0, prior))
    if layout is None:
        raise InputError(f"{request.model}: no layout for {wanted} nodes; {choice.smallest} are the fewest")
    step_s = profile.iteration_s[layout]
    hours = request.steps * step_s / 3600
    usd_per_hour = choice.candidate.pools[0].spot_usd_per_hour * wanted
    return {
        "nodes": wanted,
        "smallest_fleet": choice.smallest,
        "layout": str(layout),
        "expected": {
            "step_s": step_s,
            "hours": hours,
            "usd": hours * usd_per_hour,
            "usd_per_hour": usd_per_hour,
            "samples_per_s": profile.samples_per_s(layout),
            "liveput": liveput,
            "note": "time and cost for a fleet that nothing happens to, by assumed speeds of the GPU",
        },
    }


def add_anchor(expected: dict[str, Any], rented: AnchorPlan) -> None:
    """Add what the anchor costs to an `expectation`."""
    expected["usd"] += expected["hours"] * rented.usd_per_hour
    expected["usd_per_hour"] += rented.usd_per_hour


def swept(sweep: Callable[[Path], Iterable[str]], folder: Path) -> tuple[list[str], list[str]]:
    """The instances that a sweep of this launch has ended, and what may still run; both in words."""
    try:
        return [f"instance {name}" for name in sweep(folder)], []
    except CloudError as error:
        return [], [str(error)]


def launch_files(folders: Iterable[Path]) -> list[Path]:
    """Those of the launches' records that exist."""
    return [path for folder in folders if (path := folder / "launch.json").exists()]


def anchor_kind(
    request: LaunchRequest, spec: ModelSpec, settings: FleetSettings
) -> tuple[str, AnchorType, float]:
    """The type of machine for this job's anchor, what it is, and the memory (bytes) that it needs.

    Raises:
        InputError: none has memory enough, or nobody knows the one that was named.
    """
    needed = backup_bytes(request, spec)
    try:
        return *anchor_type(settings, needed), needed
    except ValueError as error:
        raise _wrong_settings(request, error) from error


def backup_bytes(request: LaunchRequest, spec: ModelSpec) -> float:
    """The memory that an anchor needs: what its backup may take at most, and two gigabytes for the rest.

    See ARCHITECTURE.md, "The backup, and checkpoints": three states, or two and eight gradients in fp32.
    """
    state = spec.state_params * STATE_BYTES_PER_PARAM
    most = {"state": 3 * state, "gradients": 2 * state + 8 * 4 * spec.state_params, "none": 0}
    return most[request.backup] + 2e9


@dataclass(frozen=True)
class BootedNode:
    """Waits for a node's bootstrap, then starts agents there from our own sources.

    `ready`, `failed` and `log` are the files in which the bootstrap says how it went, as a shell names them.
    `environment` is what agents are told beside their name and address.
    """

    provider: RentedProvider
    python: str
    ready: str
    failed: str
    log: str
    environment: Mapping[str, str]

    async def __call__(self, connection: asyncssh.SSHClientConnection, instance: Instance) -> str:
        """The words that start Python.

        Raises:
            BrokenNodeError: the bootstrap failed; the message ends with its log.
            CommandError: it is not ready yet.
        """
        await check_booted(connection, instance.name, BootFiles(self.ready, self.failed, self.log))
        told = {
            "PARCAE_NODE": instance.name,
            "PARCAE_ADDRESS": self.provider.private_address(instance),
            **self.environment,
        }
        return await PushedSources(self.python, told)(connection, instance)

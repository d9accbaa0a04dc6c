"""Compute Engine: what to rent for a model and why, what would be sent, and how its machines become nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncssh

from cloud.gcp.api import Api
from cloud.gcp.bootstrap import STATE, startup_script
from cloud.gcp.errors import ApiError
from cloud.gcp.launch_record import KeyPair, LaunchRecord
from cloud.gcp.market import Prospect, preemptions, prospects
from cloud.gcp.provider import GcpProvider
from cloud.gcp.requests import JOB_LABEL, LAUNCH_LABEL, Owner, bulk_insert_request, last_part
from cloud.gcp.settings import GcpSettings
from cloud.gcp.sweep import delete_until_gone, instances_of, settle
from cloud.provider import MaybeStillRunningError
from cloud.types import Instance
from runtime.control import ssh
from runtime.control.deploy import PushedSources
from runtime.control.job import LaunchRequest
from runtime.control.journal import Journal
from runtime.control.node_link import LinkTimes
from runtime.control.planner import first_plan, planner_config
from runtime.control.providers import ProviderSetup
from runtime.planning.errors import InputError
from runtime.planning.model import DeviceSpec, ModelSpec
from runtime.planning.profile import Profile, estimated_profile

SWEEP_WITHIN_S = 600.0
_LOG_LINES = 40
_STATE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Choice:
    """The machine type that was chosen with its zones, the best first, and the model as it trains there."""

    prospects: tuple[Prospect, ...]
    spec: ModelSpec
    profile: Profile
    wanted: int

    @property
    def smallest(self) -> int:
        """The fewest nodes that can train."""
        return self.profile.fewest_nodes or 1

    @property
    def spot_usd_per_hour(self) -> float:
        """Of one node, in the best zone."""
        return self.prospects[0].pool.spot_usd_per_hour


def setup(request: LaunchRequest, spec: ModelSpec, journal: Journal) -> ProviderSetup:
    """Look at the market, choose, and write down who we are in the cloud. Nothing is rented yet.

    Raises:
        InputError: the settings are wrong, or the model fits none of the machine types.
        CloudError: the library, credentials, project or capacity is missing.
    """
    settings = _settings(request)
    api = Api(settings.project)
    choice = _choose(api, settings, request, spec)
    record = LaunchRecord.at(
        journal.job_folder(request.name) / "gcp", request.name, api.project, settings.region
    )
    pools = [prospect.pool for prospect in choice.prospects]
    provider = GcpProvider(api, settings, record, pools, choice.smallest)
    times = settings.times
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
        ),
        poll_s=times.describe_s,
        anchor_reachable=False,
        agent_start=BootedNode(provider, settings),
        spec=choice.spec,
        wanted=choice.wanted,
    )


def plan(request: LaunchRequest, spec: ModelSpec) -> Mapping[str, Any]:
    """What a launch would rent, expect and send: reading calls only, nothing is made."""
    settings = _settings(request)
    api = Api(settings.project)
    choice = _choose(api, settings, request, spec)
    layout, liveput = first_plan(planner_config(request, choice.spec, choice.wanted, 1.0))
    if layout is None:
        raise InputError(
            f"{request.model}: no layout for {choice.wanted} nodes; {choice.smallest} are the fewest"
        )
    step_s = choice.profile.iteration_s[layout]
    hours = request.steps * step_s / 3600
    price, zones = choice.spot_usd_per_hour, sorted({one.pool.zone for one in choice.prospects})
    best = choice.prospects[0].pool
    key = KeyPair("(made at launch)", "(made at launch)")
    sent = bulk_insert_request(
        Owner(request.name, "LAUNCH"),
        settings,
        api.project,
        settings.region,
        [best],
        choice.wanted,
        choice.smallest,
        "TOKEN",
        0,
        key.public,
        startup_script(settings, key),
    )
    return {
        "project": api.project,
        "region": settings.region,
        "gpu": best.instance_type,
        "nodes": choice.wanted,
        "smallest_fleet": choice.smallest,
        "pools": [
            {
                "instance_type": one.pool.instance_type,
                "zone": one.pool.zone,
                "spot_usd_per_hour": one.pool.spot_usd_per_hour,
                "preempted_per_day": one.preempted_per_day,
                "placement_score": one.obtainability,
            }
            for one in choice.prospects
        ],
        "preemptions_seen": len(preemptions(api, zones)),
        "layout": str(layout),
        "expected": {
            "step_s": step_s,
            "hours": hours,
            "usd": hours * price * choice.wanted,
            "usd_per_hour": price * choice.wanted,
            "samples_per_s": choice.profile.samples_per_s(layout),
            "liveput": liveput,
            "note": "estimated for a fleet that nothing happens to, by assumed speeds of the GPU",
        },
        "requests": [{"call": "regionInstances.bulkInsert", "arguments": sent}],
    }


def sweep(folder: Path) -> list[str]:
    """Delete what a launch has left, by the records in its folder; the names of what lived.

    Raises:
        MaybeStillRunningError: the API did not say that all of it is gone.
    """
    if not (folder / "launch.json").exists():
        return []
    record = LaunchRecord.read(folder)
    try:
        api = Api(record.project)
        settle(api, record, SWEEP_WITHIN_S)
        return delete_until_gone(api, record.owner, SWEEP_WITHIN_S)
    except ApiError as error:
        raise MaybeStillRunningError(f"{error}; run `parcae down` again") from error


def foreign_instances(folders: Sequence[Path]) -> list[dict[str, str]]:
    """Live instances of Parcae, in the projects that these launches used, that belong to none of them.

    Raises:
        CloudError: an API refused.
    """
    records = [LaunchRecord.read(folder) for folder in folders if (folder / "launch.json").exists()]
    known = {record.launch for record in records}
    found = []
    for project in sorted({record.project for record in records}):
        try:
            rows = instances_of(Api(project), None)
        except ApiError as error:
            raise error.sorted from error
        found += [
            {
                "id": row.name,
                "job": row.labels.get(JOB_LABEL, ""),
                "region": last_part(row.zone),
                "since": row.creation_timestamp,
            }
            for row in rows
            if row.labels[LAUNCH_LABEL] not in known
        ]
    return found


def _settings(request: LaunchRequest) -> GcpSettings:
    try:
        return GcpSettings.parse(request.fleet)
    except ValueError as error:
        raise InputError(f"the settings of --cloud gcp (--fleet, templates/fleets): {error}") from error


def _choose(api: Api, settings: GcpSettings, request: LaunchRequest, spec: ModelSpec) -> Choice:
    """The machine type that trains most samples per dollar with the wanted number of nodes.

    Raises:
        InputError: none can hold the model; the message shows the arithmetic for each.
    """
    by_type: dict[str, list[Prospect]] = {}
    for prospect in prospects(api, settings, request.nodes):
        by_type.setdefault(prospect.pool.instance_type, []).append(prospect)
    refusals: list[str] = []
    best, best_value = None, -1.0
    for name, found in by_type.items():
        here = _on_machine(spec, found[0], settings)
        price = max(one.pool.spot_usd_per_hour for one in found)
        wanted = request.nodes
        if request.max_usd_per_hour is not None and price > 0:
            wanted = min(wanted, int(request.max_usd_per_hour / price))
        profile = estimated_profile(here, max(wanted, 1))
        layout = profile.best(wanted)
        if layout is None:
            needed = profile.fewest_nodes
            why = next(iter(profile.refused.values()), f"needs {needed} nodes, {wanted} are wanted")
            refusals.append(f"{name} with {wanted} nodes: {why}")
            continue
        value = profile.samples_per_s(layout) / max(price * layout.positions, 1e-9)
        if value > best_value:
            best, best_value = Choice(tuple(found), here, profile, wanted), value
    if best is None:
        raise InputError(f"{request.model} cannot be trained there: {'; '.join(refusals)}")
    return best


def _on_machine(spec: ModelSpec, prospect: Prospect, settings: GcpSettings) -> ModelSpec:
    pool = prospect.pool
    price = replace(
        spec.price,
        spot_usd_per_hour=pool.spot_usd_per_hour,
        on_demand_usd_per_hour=pool.on_demand_usd_per_hour,
    )
    if settings.device == "model":
        return replace(spec, price=price)
    gpu = settings.machines.get(pool.instance_type)
    if gpu is None:
        known = ", ".join(sorted(settings.machines))
        raise InputError(f"--fleet: [machines.{pool.instance_type}] is missing: give its GPU as for {known}")
    device = DeviceSpec(pool.instance_type, int(gpu.memory_bytes), gpu.flops_per_s, gpu.link_bytes_per_s)
    return replace(spec, price=price, device=device)


class BootedNode:
    """Waits for the startup script, then starts agents from our own sources, told of the metadata server."""

    def __init__(self, provider: GcpProvider, settings: GcpSettings) -> None:
        self._provider, self._settings = provider, settings

    async def __call__(self, connection: asyncssh.SSHClientConnection, instance: Instance) -> str:
        """The words that start Python.

        Raises:
            ssh.BrokenNodeError: the script failed; the message ends with its log.
            ssh.CommandError: it is not ready yet.
        """
        command = (
            f"if [ -e {STATE}/failed ]; then tail -n {_LOG_LINES} {STATE}/log; exit 9; fi; "
            f"test -e {STATE}/ready"
        )
        reply = await ssh.run(connection, command, _STATE_TIMEOUT_S)
        if reply.status == 9:
            raise ssh.BrokenNodeError(f"the bootstrap of {instance.name} failed: {reply.output.strip()}")
        if reply.status:
            raise ssh.CommandError(f"{instance.name} is not ready yet: its bootstrap is at work")
        start = PushedSources(
            self._settings.python,
            {
                "PARCAE_NODE": instance.name,
                "PARCAE_ADDRESS": self._provider.private_address(instance),
                "PARCAE_METADATA": "http://${GCE_METADATA_HOST:-metadata.google.internal}",
                "PARCAE_METADATA_FLAVOR": "gcp",
                "PARCAE_NOTICE_S": f"{self._settings.notice_s}",
            },
        )
        return await start(connection, instance)

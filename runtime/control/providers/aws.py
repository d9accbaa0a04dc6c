"""EC2: what to rent for a model and why, what would be sent, and how its machines become nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncssh

from cloud.aws import bootstrap
from cloud.aws.api import Api, ApiError
from cloud.aws.market import Offer, check_quota, offers
from cloud.aws.provider import AwsProvider
from cloud.aws.requests import (
    JOB_TAG,
    Owner,
    fleet_request,
    group_request,
    group_rules_requests,
    key_pair_request,
    launch_template_request,
)
from cloud.aws.settings import AwsSettings
from cloud.aws.shared import LaunchRecord, image_id
from cloud.aws.sweep import end_launch, strangers
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
    """The GPU that was chosen, the model as it trains there, and how many nodes the user's limits allow."""

    offer: Offer
    spec: ModelSpec
    profile: Profile
    wanted: int
    vpc: str


def setup(request: LaunchRequest, spec: ModelSpec, journal: Journal) -> ProviderSetup:
    """Look at the market, choose, and write down who we are in the cloud. Nothing is rented yet.

    Raises:
        InputError: the settings are wrong, or the model fits none of the GPUs.
        CloudError: the library, credentials, region, quota or capacity is missing.
    """
    settings = _settings(request)
    api = Api(settings.region)
    choice = _choose(api, settings, request, spec)
    smallest = choice.profile.fewest_nodes or 1
    check_quota(api, {plan.pool.instance_type for plan in choice.offer.pools}, smallest)
    folder = journal.job_folder(request.name) / "aws"
    record = LaunchRecord.at(folder, request.name, api.region)
    provider = AwsProvider(
        api, settings, record, choice.offer.pools, choice.vpc, folder, request.home, smallest
    )
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
    api = Api(settings.region)
    choice = _choose(api, settings, request, spec)
    smallest = choice.profile.fewest_nodes or 1
    check_quota(api, {plan.pool.instance_type for plan in choice.offer.pools}, smallest)
    wanted, profile, price = choice.wanted, choice.profile, choice.offer.spot_usd_per_hour
    layout, liveput = first_plan(planner_config(request, choice.spec, wanted, 1.0))
    if layout is None:
        raise InputError(f"{request.model}: no layout for {wanted} nodes; {smallest} are the fewest")
    step_s = profile.iteration_s[layout]
    hours = request.steps * step_s / 3600
    try:
        image = image_id(api, settings)
    except ApiError as error:
        raise error.sorted from error
    owner, group = Owner(request.name, "LAUNCH"), "GROUP"
    user_data = bootstrap.user_data(settings, bootstrap.HostKey("(made at launch)", "(made at launch)"))
    sent = [
        ("import_key_pair", key_pair_request("parcae-KEY", "(the public half of PARCAE_HOME/aws/ssh_key)")),
        ("create_security_group", group_request(choice.vpc)),
        *(("authorize_security_group_ingress", rule) for rule in group_rules_requests(group, settings)),
        (
            "create_launch_template",
            launch_template_request(owner, settings, image, "parcae-KEY", group, user_data),
        ),
        (
            "create_fleet",
            fleet_request(owner, settings, choice.offer.pools, wanted, min(smallest, wanted), "TOKEN"),
        ),
    ]
    return {
        "region": api.region,
        "gpu": choice.offer.gpu,
        "nodes": wanted,
        "smallest_fleet": smallest,
        "pools": [
            {
                "instance_type": one.pool.instance_type,
                "zone": one.pool.zone,
                "spot_usd_per_hour": one.pool.spot_usd_per_hour,
                "placement_score": choice.offer.scores.get(one.pool.zone),
            }
            for one in choice.offer.pools
        ],
        "layout": str(layout),
        "expected": {
            "step_s": step_s,
            "hours": hours,
            "usd": hours * price * wanted,
            "usd_per_hour": price * wanted,
            "samples_per_s": profile.samples_per_s(layout),
            "liveput": liveput,
            "note": "time and cost for a fleet that nothing happens to, by assumed speeds of the GPU",
        },
        "requests": [{"call": call, "arguments": _printable(arguments)} for call, arguments in sent],
    }


def sweep(folder: Path) -> list[str]:
    """Terminate what a launch has left, by the records in its folder; the ids of what lived.

    Raises:
        MaybeStillRunningError: the API did not say that all of it is gone.
    """
    return end_launch(folder, SWEEP_WITHIN_S)


def foreign_instances(folders: Sequence[Path]) -> list[dict[str, str]]:
    """Live instances of Parcae, in the regions that these launches used, that belong to none of them."""
    paths = [folder / "launch.json" for folder in folders]
    records = [LaunchRecord.read(path) for path in paths if path.exists()]
    found = []
    for region in sorted({record.region for record in records}):
        for row in strangers(Api(region), {record.launch for record in records}):
            tags = {tag["Key"]: tag["Value"] for tag in row.get("Tags", [])}
            found.append(
                {
                    "id": row["InstanceId"],
                    "job": tags.get(JOB_TAG, ""),
                    "region": region,
                    "since": str(row.get("LaunchTime", "")),
                }
            )
    return found


def _printable(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Mapping):
        return {key: _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


def _settings(request: LaunchRequest) -> AwsSettings:
    try:
        return AwsSettings.parse(request.fleet)
    except ValueError as error:
        raise InputError(f"the settings of --cloud aws (--fleet, templates/fleets): {error}") from error


def _choose(api: Api, settings: AwsSettings, request: LaunchRequest, spec: ModelSpec) -> Choice:
    """The GPU that trains most samples per dollar with the wanted number of nodes.

    Raises:
        InputError: no GPU can hold the model; the message shows the arithmetic for each.
    """
    try:
        found, vpc = offers(api, settings, request.nodes)
    except ApiError as error:
        raise error.sorted from error
    refusals, best = [], None
    best_value = -1.0
    for offer in found:
        here = _on_device(spec, offer, settings)
        price = max(plan.pool.spot_usd_per_hour for plan in offer.pools)
        wanted = _affordable(request, price)
        profile = estimated_profile(here, max(wanted, 1))
        layout = profile.best(wanted)
        if layout is None:
            refusals.append(_refusal(offer, profile, wanted, price, request))
            continue
        value = profile.samples_per_s(layout) / max(offer.spot_usd_per_hour * layout.positions, 1e-9)
        if value > best_value:
            best, best_value = Choice(offer, here, profile, wanted, vpc), value
    if best is None:
        raise InputError(f"{request.model} cannot be trained there: {'; '.join(refusals)}")
    return best


def _affordable(request: LaunchRequest, usd_per_hour: float) -> int:
    if request.max_usd_per_hour is None or usd_per_hour <= 0:
        return request.nodes
    return min(request.nodes, int(request.max_usd_per_hour / usd_per_hour))


def _on_device(spec: ModelSpec, offer: Offer, settings: AwsSettings) -> ModelSpec:
    pool = offer.pools[0].pool
    price = replace(
        spec.price,
        spot_usd_per_hour=pool.spot_usd_per_hour,
        on_demand_usd_per_hour=pool.on_demand_usd_per_hour,
    )
    if settings.device == "model":
        return replace(spec, price=price)
    speed = settings.gpus.get(offer.gpu)
    if speed is None:
        known = ", ".join(sorted(settings.gpus))
        raise InputError(f"--fleet: [gpus.{offer.gpu}] is missing: give its speed as for {known}")
    device = DeviceSpec(offer.gpu, offer.gpu_memory_bytes, speed.flops_per_s, speed.link_bytes_per_s)
    return replace(spec, price=price, device=device)


def _refusal(offer: Offer, profile: Profile, wanted: int, price: float, request: LaunchRequest) -> str:
    if wanted < request.nodes and not wanted:
        return f"{offer.gpu}: one costs {price:g} USD an hour, --max-price-per-hour is below"
    if not profile.refused:
        needed = profile.fewest_nodes
        return f"{offer.gpu}: needs at least {needed} nodes, {wanted} are wanted or affordable"
    deepest = max(profile.refused, key=lambda layout: (layout.stages, -layout.pipelines))
    return f"{offer.gpu} with {wanted} nodes: {profile.refused[deepest]}"


class BootedNode:
    """Waits for the bootstrap, then starts agents from our own sources with the node's address and lease."""

    def __init__(self, provider: AwsProvider, settings: AwsSettings) -> None:
        self._provider, self._settings = provider, settings

    async def __call__(self, connection: asyncssh.SSHClientConnection, instance: Instance) -> str:
        """The words that start Python.

        Raises:
            ssh.BrokenNodeError: the bootstrap failed; the message ends with its log.
            ssh.CommandError: it is not ready yet.
        """
        command = (
            f"if [ -e {bootstrap.FAILED} ]; then tail -n {_LOG_LINES} {bootstrap.LOG}; exit 9; fi; "
            f"test -e {bootstrap.READY}"
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
                "PARCAE_LEASE_FILE": f"$HOME/{bootstrap.LEASE}",
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": (
                    "${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}"
                ),
            },
        )
        return await start(connection, instance)

"""EC2: what to rent for a model and why, what would be sent, and how its machines become nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloud.anchor import AnchorPlan
from cloud.aws import bootstrap
from cloud.aws.anchor import anchor_lives as _anchor_lives
from cloud.aws.anchor import anchor_settings, anchor_subnets, anchor_type, rent_anchor
from cloud.aws.anchor import end_anchor as _end_anchor
from cloud.aws.api import Api, ApiError
from cloud.aws.market import Offer, check_quota, offers
from cloud.aws.provider import AwsProvider
from cloud.aws.requests import (
    JOB_TAG,
    Owner,
    anchor_request,
    fleet_request,
    group_request,
    group_rules_requests,
    key_pair_request,
    launch_template_request,
)
from cloud.aws.settings import AwsSettings
from cloud.aws.shared import LaunchRecord, client_key, image_id
from cloud.aws.sweep import end_launch, strangers
from runtime.control.job.job import LaunchRequest
from runtime.control.job.journal import Journal
from runtime.control.providers import ProviderSetup
from runtime.control.providers.rented import (
    SWEEP_WITHIN_S,
    BootedNode,
    Candidate,
    Choice,
    backup_bytes,
    choose,
    expectation,
    launch_files,
    read_settings,
    rented_setup,
)
from runtime.planning.errors import InputError
from runtime.planning.model import DeviceSpec, ModelSpec


def setup(request: LaunchRequest, spec: ModelSpec, journal: Journal) -> ProviderSetup:
    """Look at the market, choose, and write down who we are in the cloud. Nothing is rented yet.

    Raises:
        InputError: the settings are wrong, or the model fits none of the GPUs.
        CloudError: the library, credentials, region, quota or capacity is missing.
    """
    settings = read_settings(AwsSettings, request)
    api = Api(settings.region)
    choice, offer, vpc = _choose(api, settings, request, spec)
    folder = journal.job_folder(request.name) / "aws"
    record = LaunchRecord.at(folder, request.name, api.region)
    provider = AwsProvider(
        api, settings, record, offer.pools, vpc, folder, request.home, choice.smallest, wanted=request.nodes
    )
    environment = {
        "PARCAE_LEASE_FILE": f"$HOME/{bootstrap.LEASE}",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": "${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}",
    }
    start = BootedNode(
        provider, settings.python, bootstrap.READY, bootstrap.FAILED, bootstrap.LOG, environment
    )
    market = (
        f"{one.key}: {one.pool.spot_usd_per_hour:.4g} USD an hour, "
        f"placement score {offer.scores.get(one.pool.zone, 'not told')}"
        for one in offer.pools
    )
    return rented_setup(provider, settings.times, choice, start, market)


def plan(request: LaunchRequest, spec: ModelSpec) -> Mapping[str, Any]:
    """What a launch would rent, expect and send: reading calls only, nothing is made."""
    settings = read_settings(AwsSettings, request)
    api = Api(settings.region)
    choice, offer, vpc = _choose(api, settings, request, spec)
    expected = expectation(request, choice)
    try:
        image = image_id(api, settings)
    except ApiError as error:
        raise error.sorted from error
    owner, group = Owner(request.name, "LAUNCH"), "GROUP"
    user_data = bootstrap.user_data(settings, bootstrap.HostKey("(made at launch)", "(made at launch)"))
    least = min(choice.smallest, choice.wanted)
    sent = [
        ("import_key_pair", key_pair_request("parcae-KEY", "(the public half of PARCAE_HOME/aws/ssh_key)")),
        ("create_security_group", group_request(vpc)),
        *(("authorize_security_group_ingress", rule) for rule in group_rules_requests(group, settings)),
        (
            "create_launch_template",
            launch_template_request(owner, settings, image, "parcae-KEY", group, user_data),
        ),
        ("create_fleet", fleet_request(owner, settings, offer.pools, choice.wanted, least, "TOKEN")),
    ]
    anchor_told: dict[str, Any] = {}
    if request.anchor == "cloud":
        rented = _anchor_plan(api, settings, request, spec, offer, vpc, Path())
        told = bootstrap.user_data(
            anchor_settings(settings),
            bootstrap.HostKey("(made at launch)", "(made at launch)"),
            settings.times.anchor_longest_s,
        )
        subnet = offer.pools[0].subnet
        arguments = anchor_request(
            owner, settings.anchor_profile, rented.kind, settings.anchor_image or "(that of its parameter)",
            "parcae-KEY", group, subnet, told, "TOKEN",
        )  # fmt: skip
        sent.insert(3, ("run_instances", arguments))
        anchor_told = {
            "anchor": {
                "instance_type": rented.kind,
                "zone": rented.zone,
                "usd_per_hour": rented.usd_per_hour,
                "memory_bytes": rented.memory_bytes,
                "needed_bytes": rented.needed_bytes,
            }
        }
        expected["expected"]["usd"] += expected["expected"]["hours"] * rented.usd_per_hour
        expected["expected"]["usd_per_hour"] += rented.usd_per_hour
    return {
        **anchor_told,
        "region": api.region,
        "gpu": offer.name,
        "pools": [
            {
                "instance_type": one.pool.instance_type,
                "zone": one.pool.zone,
                "spot_usd_per_hour": one.pool.spot_usd_per_hour,
                "placement_score": offer.scores.get(one.pool.zone),
            }
            for one in offer.pools
        ],
        **expected,
        "requests": [{"call": call, "arguments": _printable(arguments)} for call, arguments in sent],
    }


def anchor(request: LaunchRequest, spec: ModelSpec, folder: Path) -> AnchorPlan:
    """The anchor for this job, whose files are in `folder`. Nothing is rented yet.

    Raises:
        InputError, CloudError: as for `setup`; or there is no profile, or no type with memory enough.
    """
    settings = read_settings(AwsSettings, request)
    api = Api(settings.region)
    _, offer, vpc = _choose(api, settings, request, spec)
    return _anchor_plan(api, settings, request, spec, offer, vpc, folder)


def _anchor_plan(
    api: Api,
    settings: AwsSettings,
    request: LaunchRequest,
    spec: ModelSpec,
    offer: Offer,
    vpc: str,
    folder: Path,
) -> AnchorPlan:
    """Nothing is written before `rent` is called, but for the folder of a job that is to begin."""
    if not settings.anchor_profile:
        raise InputError(
            "--anchor cloud: the anchor calls EC2 by itself, and your own keys are not copied there: name an "
            "instance profile (anchor_profile = ..) in the file of --fleet, or leave out --anchor cloud"
        )
    needed = backup_bytes(request, spec)
    try:
        kind, facts = anchor_type(settings, needed)
    except ValueError as error:
        raise InputError(f"the settings of --cloud aws (--fleet, templates/fleets): {error}") from error
    subnets = anchor_subnets(offer.pools)
    own, files = folder / "anchor", {}
    if folder != Path():
        nodes = folder / "aws"
        LaunchRecord.at(nodes, request.name, api.region)
        private, _, _ = client_key(own)
        record = (nodes / "launch.json").read_text()
        files = {f"jobs/{request.name}/aws/launch.json": record, "aws/ssh_key": private}
    return AnchorPlan(
        kind,
        subnets[0][0],
        facts.usd_per_hour,
        facts.memory_bytes,
        needed,
        settings.times.anchor_linger_s,
        settings.times.boot_s,
        lambda: rent_anchor(api, settings, own, request.name, kind, facts.usd_per_hour, subnets, vpc),
        files,
        {**request.fleet, "region": api.region, "inside": True},
    )


def anchor_lives(folder: Path) -> bool:
    """Whether the API knows the anchor of this folder as anything but ended.

    Raises:
        CloudError: it does not answer.
    """
    return _anchor_lives(folder)


def end_anchor(folder: Path) -> list[str]:
    """Terminate the anchor of this folder and wait for the API's word; the ids of what lived.

    Raises:
        MaybeStillRunningError: the API did not say that it is gone.
    """
    return _end_anchor(folder, SWEEP_WITHIN_S)


def sweep(folder: Path) -> list[str]:
    """Terminate what a launch has left, by the records in its folder; the ids of what lived.

    Raises:
        MaybeStillRunningError: the API did not say that all of it is gone.
    """
    return end_launch(folder, SWEEP_WITHIN_S)


def foreign_instances(folders: Sequence[Path]) -> list[dict[str, str]]:
    """Live instances of Parcae, in the regions that these launches used, that belong to none of them."""
    records = [LaunchRecord.read(path) for path in launch_files(folders)]
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


def _choose(
    api: Api, settings: AwsSettings, request: LaunchRequest, spec: ModelSpec
) -> tuple[Choice, Offer, str]:
    """The GPU to rent, what is offered of it, and the VPC.

    Raises:
        InputError: no GPU can hold the model; the message shows the arithmetic for each.
        CloudError: nothing is offered, or the quota does not allow the smallest fleet.
    """
    try:
        found, vpc = offers(api, settings, request.nodes)
    except ApiError as error:
        raise error.sorted from error
    choice = choose(
        request,
        [
            Candidate(offer.name, tuple(one.pool for one in offer.pools), _on_device(spec, offer, settings))
            for offer in found
        ],
    )
    check_quota(api, {pool.instance_type for pool in choice.candidate.pools}, choice.smallest)
    return choice, next(offer for offer in found if offer.name == choice.candidate.name), vpc


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

"""EC2: what to rent for a model and why, what would be sent, and how its machines become nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloud.anchor import AnchorPlan
from cloud.aws import bootstrap
from cloud.aws.anchor import anchor_lives as anchor_lives  # of the module's own interface
from cloud.aws.anchor import end_anchor as _end_anchor
from cloud.aws.api import Api, ApiError
from cloud.aws.event_requests import policy_request, queue_request, rule_request, target_request
from cloud.aws.launch_record import LaunchRecord, RegionPools, Rental, used_regions
from cloud.aws.market import spot_prices
from cloud.aws.provider import AwsProvider
from cloud.aws.region import Region
from cloud.aws.requests import (
    JOB_TAG,
    Owner,
    Request,
    fleet_request,
    group_egress_requests,
    group_request,
    group_rules_requests,
    key_pair_request,
    launch_template_request,
    placement_group_request,
)
from cloud.aws.settings import AwsSettings
from cloud.aws.shared import image_id
from cloud.aws.sweep import end_launch, strangers
from runtime.control.job.job import LaunchRequest
from runtime.control.job.journal import JobRecord, Journal
from runtime.control.providers import ProviderSetup
from runtime.control.providers.aws_anchor import anchor_plan, anchor_told
from runtime.control.providers.aws_choice import Decision, decide, decided
from runtime.control.providers.rented import (
    SWEEP_WITHIN_S,
    BootedNode,
    add_anchor,
    expectation,
    launch_files,
    read_settings,
    rented_setup,
    swept,
)
from runtime.planning.model import ModelSpec


def setup(request: LaunchRequest, spec: ModelSpec, journal: Journal) -> ProviderSetup:
    """Look at the market, choose, and write down who we are in the cloud. Nothing is rented yet.

    A job that is resumed keeps the machine and the regions that it was planned for: its nodes may live there.

    Raises:
        InputError: the settings are wrong, or the model fits none of the GPUs.
        CloudError: the library, credentials, region, quota or capacity is missing.
    """
    settings = read_settings(AwsSettings, request)
    folder = journal.job_folder(request.name) / "aws"
    known = any(job.name == request.name for job in journal.jobs())  # then it is being resumed
    before = _rental_before(folder) if known else None
    if before is not None:
        decision = decided(_priced(before), settings, request, spec)
    else:
        decision = decide(settings, request, spec)
    choice, rental = decision.choice, decision.rental
    home = rental.regions[0].region
    record = LaunchRecord.at(folder, request.name, home, settings.notices == "eventbridge", rental)
    regions = [Region(Api(pools.region), pools.vpc, pools.plans) for pools in rental.regions]
    provider = AwsProvider(
        regions, settings, record, folder, request.home, choice.smallest,
        wanted=request.nodes, gpus=request.gpus_per_node,
    )  # fmt: skip
    environment = {
        "PARCAE_LEASE_FILE": f"$HOME/{bootstrap.LEASE}",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": "${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}",
    }
    start = BootedNode(
        provider, settings.python, bootstrap.READY, bootstrap.FAILED, bootstrap.LOG, environment
    )
    market = (
        f"{one.key}: {one.pool.spot_usd_per_hour:.4g} USD an hour, "
        f"placement score {pools.scores.get(one.pool.zone, 'not told')}"
        for pools in rental.regions
        for one in pools.plans
    )
    return rented_setup(provider, settings.times, choice, start, market)


def plan(request: LaunchRequest, spec: ModelSpec) -> Mapping[str, Any]:
    """What a launch would rent, expect and send: reading calls only, nothing is made."""
    settings = read_settings(AwsSettings, request)
    decision = decide(settings, request, spec)
    home = decision.rental.regions[0]
    try:
        image = image_id(Api(home.region), settings)
    except ApiError as error:
        raise error.sorted from error
    expected = expectation(request, decision.choice)
    sent = _sent(request, settings, decision, home, image)
    told: dict[str, Any] = {}
    if request.anchor == "cloud":
        rented = anchor_plan(Api(home.region), settings, request, spec, home, Path())
        told, arguments = anchor_told(
            Api(home.region), rented, settings, Owner(request.name, "ANCHOR-LAUNCH"), home
        )
        # Key pair and group are made for the anchor; all that is for nodes comes from the launcher on it.
        place = [call for call, _ in sent].index("create_launch_template")
        sent.insert(place, ("run_instances", arguments))
        add_anchor(expected["expected"], rented)
    return {
        **told,
        "region": home.region,
        "regions": decision.comparison(),
        "gpu": decision.choice.candidate.name,
        "pools": [
            {
                "instance_type": one.pool.instance_type,
                "zone": one.pool.zone,
                "spot_usd_per_hour": one.pool.spot_usd_per_hour,
                "placement_score": home.scores.get(one.pool.zone),
            }
            for one in home.plans
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
    home = decide(settings, request, spec).rental.regions[0]
    return anchor_plan(Api(home.region), settings, request, spec, home, folder)


def end_anchor(folder: Path) -> list[str]:
    """Terminate the anchor of this folder and wait for the API's word; the ids of what lived.

    Raises:
        MaybeStillRunningError: the API did not say that it is gone.
    """
    return _end_anchor(folder, SWEEP_WITHIN_S)


def _sent(
    request: LaunchRequest, settings: AwsSettings, decision: Decision, home: RegionPools, image: str
) -> list[tuple[str, Request]]:
    """The calls that make or rent something, in order. What is only known at a launch is in capitals."""
    owner, group, choice = Owner(request.name, "LAUNCH"), "GROUP", decision.choice
    user_data = bootstrap.user_data(settings, bootstrap.HostKey("(made at launch)", "(made at launch)"))
    own = f"jobs/{request.name}/anchor/" if request.anchor == "cloud" else ""
    public = f"(the public half of PARCAE_HOME/{own}aws/ssh_key)"
    made: list[tuple[str, Request]] = [
        ("import_key_pair", key_pair_request("parcae-KEY", public)),
        ("create_security_group", group_request(home.vpc, settings)),
        *(("authorize_security_group_ingress", rule) for rule in group_rules_requests(group, settings)),
        *(("authorize_security_group_egress", rule) for rule in group_egress_requests(group, settings)),
        (
            "create_launch_template",
            launch_template_request(owner, settings, image, "parcae-KEY", group, user_data),
        ),
    ]
    if settings.placement_group:
        made.append(("create_placement_group", placement_group_request(owner)))
    if settings.notices == "eventbridge":
        made += [
            ("create_queue", queue_request(owner)),
            ("put_rule", rule_request(owner)),
            ("set_queue_attributes", policy_request("QUEUE-URL", "QUEUE-ARN", "RULE-ARN")),
            ("put_targets", target_request(owner, "QUEUE-ARN")),
        ]
    least = min(choice.smallest, choice.wanted)
    made.append(("create_fleet", fleet_request(owner, settings, home.plans, choice.wanted, least, "TOKEN")))
    return made


def _rental_before(folder: Path) -> Rental | None:
    """What the job was planned for by its last launcher."""
    path = folder / "launch.json"
    return LaunchRecord.read(path).rental if path.exists() else None


def _priced(rental: Rental) -> Rental:
    """With today's prices, where they can be had: what is rented from now on costs those."""
    regions = []
    for pools in rental.regions:
        try:
            prices = spot_prices(Api(pools.region), sorted({one.pool.instance_type for one in pools.plans}))
        except ApiError:
            prices = {}
        plans = tuple(
            replace(one, pool=replace(one.pool, spot_usd_per_hour=price))
            if (price := prices.get((one.pool.instance_type, one.pool.zone)))
            else one
            for one in pools.plans
        )
        regions.append(replace(pools, plans=plans))
    return replace(rental, regions=tuple(regions))


def sweep(folder: Path) -> list[str]:
    """Terminate what a launch has left, by the records in its folder; the ids of what lived.

    Raises:
        MaybeStillRunningError: the API did not say that all of it is gone.
    """
    return end_launch(folder, SWEEP_WITHIN_S)


def sweep_job(journal: Journal, record: JobRecord) -> tuple[list[str], list[str]]:
    """The same for a job: what has ended, and what may still run, in words."""
    return swept(sweep, journal.job_folder(record.name) / "aws")


def foreign_instances(folders: Sequence[Path]) -> list[dict[str, str]]:
    """Live instances of Parcae, in the regions that these launches used, that belong to none of them."""
    records = {path.parent: LaunchRecord.read(path) for path in launch_files(folders)}
    known = {record.launch for record in records.values()}
    regions = {region for folder, record in records.items() for region in used_regions(folder, record)}
    found = []
    for region in sorted(regions):
        for row in strangers(Api(region), known):
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

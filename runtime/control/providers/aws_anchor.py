"""EC2: the machine for launcher and backup of a job, beside the region that its nodes are rented in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cloud.anchor import AnchorPlan
from cloud.aws import bootstrap
from cloud.aws.anchor import anchor_settings, anchor_subnets, rent_anchor
from cloud.aws.api import Api
from cloud.aws.launch_record import LaunchRecord, RegionPools
from cloud.aws.requests import Owner, Request, anchor_request
from cloud.aws.settings import AwsSettings
from cloud.aws.shared import client_key, image_id
from runtime.control.job.job import LaunchRequest
from runtime.control.providers.rented import anchor_kind
from runtime.planning.errors import InputError
from runtime.planning.model import ModelSpec


def anchor_plan(
    api: Api,
    settings: AwsSettings,
    request: LaunchRequest,
    spec: ModelSpec,
    home: RegionPools,
    folder: Path,
) -> AnchorPlan:
    """Nothing is written before `rent` is called, but for the folder of a job that is to begin."""
    if not settings.anchor_profile:
        raise InputError(
            "--anchor cloud: the anchor calls EC2 by itself, and your own keys are not copied there: name an "
            "instance profile (anchor_profile = ..) in the file of --fleet, or leave out --anchor cloud"
        )
    kind, facts, needed = anchor_kind(request, spec, settings)
    subnets = anchor_subnets(home.plans)
    own, files = folder / "anchor", {}
    if folder != Path():
        nodes = folder / "aws"
        # Whoever sweeps from here, when the anchor is silent, must know of rule and queue, too.
        LaunchRecord.at(nodes, request.name, api.region, settings.notices == "eventbridge")
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
        lambda: rent_anchor(api, settings, own, request.name, kind, facts.usd_per_hour, subnets, home.vpc),
        files,
        {**request.fleet, "region": api.region, "regions": [], "inside": True},
    )


def anchor_told(
    api: Api, rented: AnchorPlan, settings: AwsSettings, owner: Owner, home: RegionPools
) -> tuple[dict[str, Any], Request]:
    """What a dry run says of it, and the request that would be sent.

    Raises:
        CloudError: nobody knows the anchor's image.
    """
    own = anchor_settings(settings)
    told = bootstrap.user_data(
        own,
        bootstrap.HostKey("(made at launch)", "(made at launch)"),
        settings.times.anchor_longest_s,
    )
    arguments = anchor_request(
        owner, settings.anchor_profile, rented.kind, image_id(api, own),
        "parcae-KEY", "GROUP", home.plans[0].subnet, told, f"{owner.launch}-0",
    )  # fmt: skip
    return {"anchor": rented.told()}, arguments

"""Compute Engine: the machine for launcher and backup of a job, in the region of its nodes."""

from __future__ import annotations

from pathlib import Path

from cloud.anchor import AnchorPlan
from cloud.gcp.anchor import rent_anchor
from cloud.gcp.api import Api
from cloud.gcp.launch_record import LaunchRecord
from cloud.gcp.provider import by_zone
from cloud.gcp.settings import GcpSettings
from runtime.control.job.job import LaunchRequest
from runtime.control.providers.rented import Candidate, anchor_kind
from runtime.planning.errors import InputError
from runtime.planning.model import ModelSpec


def anchor_plan(
    api: Api, settings: GcpSettings, request: LaunchRequest, spec: ModelSpec, nodes: Candidate, folder: Path
) -> AnchorPlan:
    """Nothing is written before `rent` is called, but for the folder of a job that is to begin.

    The zone of the best pool is tried first: the backup's traffic then stays in a zone.
    """
    if not settings.anchor_account:
        raise InputError(
            "--anchor cloud: the anchor calls Compute Engine by itself, and your own credentials are not "
            "copied there: name a service account (anchor_account = ..) in the file of --fleet, or leave out "
            "--anchor cloud"
        )
    kind, facts, needed = anchor_kind(request, spec, settings)
    zones = list(by_zone(nodes.pools))
    own, files = folder / "anchor", {}
    if folder != Path():
        LaunchRecord.at(folder / "gcp", request.name, api.project, settings.region, nodes.name)
        files = {f"jobs/{request.name}/gcp/launch.json": (folder / "gcp/launch.json").read_text()}
    return AnchorPlan(
        kind,
        zones[0],
        facts.usd_per_hour,
        facts.memory_bytes,
        needed,
        settings.times.anchor_linger_s,
        settings.times.boot_s,
        lambda: rent_anchor(api, settings, own, request.name, kind, facts.usd_per_hour, zones),
        files,
        {**request.fleet, "project": api.project, "inside": True},
    )

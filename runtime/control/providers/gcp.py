"""Compute Engine: what to rent for a model and why, what would be sent, and how its machines become nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloud.anchor import AnchorPlan
from cloud.gcp.anchor import anchor_lives as anchor_lives  # of the module's own interface
from cloud.gcp.anchor import end_anchor as _end_anchor
from cloud.gcp.anchor import request_in
from cloud.gcp.api import Api
from cloud.gcp.bootstrap import STATE, startup_script
from cloud.gcp.errors import ApiError
from cloud.gcp.launch_record import KeyPair, LaunchRecord
from cloud.gcp.market import Prospect, preemptions, prospects
from cloud.gcp.provider import GcpProvider, by_zone
from cloud.gcp.requests import JOB_LABEL, LAUNCH_LABEL, Owner, bulk_insert_request, last_part
from cloud.gcp.settings import GcpSettings
from cloud.gcp.sweep import end_launch, instances_of
from cloud.provider import CloudError
from runtime.control.job.job import LaunchRequest
from runtime.control.job.journal import JobRecord, Journal
from runtime.control.providers import ProviderSetup
from runtime.control.providers.gcp_anchor import anchor_plan
from runtime.control.providers.rented import (
    SWEEP_WITHIN_S,
    BootedNode,
    Candidate,
    Choice,
    add_anchor,
    at_price,
    choose,
    expectation,
    launch_files,
    read_settings,
    rented_setup,
    swept,
)
from runtime.planning.errors import InputError
from runtime.planning.model import DeviceSpec, ModelSpec
from runtime.planning.prior import PriorRates

# The service's rates are of the whole zone and a week; a job's own watching outweighs them after a morning.
ADVICE_WEIGHT_H = 4.0


def setup(request: LaunchRequest, spec: ModelSpec, journal: Journal) -> ProviderSetup:
    """Look at the market, choose, and write down who we are in the cloud. Nothing is rented yet.

    Raises:
        InputError: the settings are wrong, or the model fits none of the machine types.
        CloudError: the library, credentials, project or capacity is missing.
    """
    settings = read_settings(GcpSettings, request)
    api = Api(settings.project)
    folder = journal.job_folder(request.name) / "gcp"
    before = LaunchRecord.read(folder).gpu if (folder / "launch.json").exists() else ""
    choice, found = _choose(api, settings, request, spec, before)
    record = LaunchRecord.at(folder, request.name, api.project, settings.region, choice.candidate.name)
    provider = GcpProvider(
        api, settings, record, choice.candidate.pools, choice.smallest, wanted=request.nodes
    )
    environment = {
        "PARCAE_METADATA": "http://${GCE_METADATA_HOST:-metadata.google.internal}",
        "PARCAE_METADATA_FLAVOR": "gcp",
        "PARCAE_NOTICE_S": f"{settings.notice_s}",
    }
    start = BootedNode(
        provider, settings.python, f"{STATE}/ready", f"{STATE}/failed", f"{STATE}/log", environment
    )
    market = [*map(_in_words, found)]
    with suppress(CloudError):  # who may rent may not be allowed to list operations
        market.append(f"preemptions of this project that the API remembers there: {_preempted(api, found)}")
    return rented_setup(provider, settings.times, choice, start, market, prior_of(found))


def plan(request: LaunchRequest, spec: ModelSpec) -> Mapping[str, Any]:
    """What a launch would rent, expect and send: reading calls only, nothing is made."""
    settings = read_settings(GcpSettings, request)
    api = Api(settings.project)
    choice, found = _choose(api, settings, request, spec)
    key = KeyPair("(made at launch)", "(made at launch)")
    sent = [
        bulk_insert_request(
            Owner(request.name, "LAUNCH"),
            settings,
            api.project,
            settings.region,
            pools,
            choice.wanted,
            min(choice.smallest, choice.wanted),
            "TOKEN",
            number,
            key.public,
            startup_script(settings, key),
        )
        for number, pools in enumerate(by_zone(choice.candidate.pools).values())
    ]
    expected = expectation(request, choice, prior_of(found))
    told, calls = {}, []
    if request.anchor == "cloud":
        rented = anchor_plan(api, settings, request, spec, choice.candidate, Path())
        record = LaunchRecord(Path(), request.name, "LAUNCH", api.project, settings.region, key, key)
        arguments = request_in(record, settings, rented.kind, rented.zone, 0)
        calls.append({"call": "regionInstances.bulkInsert", "arguments": arguments})
        told = {"anchor": rented.told()}
        add_anchor(expected["expected"], rented)
    return {
        **told,
        "project": api.project,
        "region": settings.region,
        "gpu": choice.candidate.name,
        "pools": [
            {
                "instance_type": one.pool.instance_type,
                "zone": one.pool.zone,
                "spot_usd_per_hour": one.pool.spot_usd_per_hour,
                "preempted_per_day": one.preempted_per_day,
                "placement_score": one.obtainability,
            }
            for one in found
        ],
        "preemptions_seen": _preempted(api, found),
        **expected,
        "requests": [
            *calls,
            *(
                {
                    "call": "regionInstances.bulkInsert",
                    "arguments": one,
                    **(
                        {"if": "fewer came from the zones before, for those that are missing"}
                        if number
                        else {}
                    ),
                }
                for number, one in enumerate(sent)
            ),
        ],
    }


def anchor(request: LaunchRequest, spec: ModelSpec, folder: Path) -> AnchorPlan:
    """The anchor for this job, whose files are in `folder`. Nothing is rented yet.

    Raises:
        InputError, CloudError: as for `setup`; or there is no account, or no type with memory enough.
    """
    settings = read_settings(GcpSettings, request)
    api = Api(settings.project)
    choice, _ = _choose(api, settings, request, spec)
    return anchor_plan(api, settings, request, spec, choice.candidate, folder)


def end_anchor(folder: Path) -> list[str]:
    """Delete the anchor of this folder and wait for the API's word; the names of what lived.

    Raises:
        MaybeStillRunningError: the API did not say that it is gone.
    """
    return _end_anchor(folder, SWEEP_WITHIN_S)


def sweep(folder: Path) -> list[str]:
    """Delete what a launch has left, by the records in its folder; the names of what lived.

    Raises:
        MaybeStillRunningError: the API did not say that all of it is gone.
    """
    return end_launch(folder, SWEEP_WITHIN_S)


def sweep_job(journal: Journal, record: JobRecord) -> tuple[list[str], list[str]]:
    """The same for a job: what has ended, and what may still run, in words."""
    return swept(sweep, journal.job_folder(record.name) / "gcp")


def foreign_instances(folders: Sequence[Path]) -> list[dict[str, str]]:
    """Live instances of Parcae, in the projects that these launches used, that belong to none of them.

    Raises:
        CloudError: an API refused.
    """
    records = [LaunchRecord.read(path.parent) for path in launch_files(folders)]
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


def prior_of(found: Sequence[Prospect]) -> PriorRates | None:
    """What the advice service's preemption rates say of a job's losses; None where it says nothing.

    A share p of instances lost in a day is -ln(1 - p) losses for each instance and day. What is lost is
    rented again, so as many come.
    """
    shares = [one.preempted_per_day for one in found if one.preempted_per_day is not None]
    if not shares:
        return None
    losses_per_hour = sum(-math.log(1 - min(share, 0.999)) for share in shares) / len(shares) / 24
    return PriorRates(losses_per_hour, losses_per_hour, ADVICE_WEIGHT_H)


def _preempted(api: Api, found: Sequence[Prospect]) -> int:
    """How often machines of this project were taken in the zones of these pools, as long as the API knows."""
    return len(preemptions(api, sorted({one.pool.zone for one in found})))


def _in_words(one: Prospect) -> str:
    told = [f"{one.pool.spot_usd_per_hour:.4g} USD an hour"]
    if one.preempted_per_day is not None:
        told.append(f"{one.preempted_per_day:.1%} preempted a day")
    if one.obtainability is not None:
        told.append(f"obtainability {one.obtainability:.2g}")
    return f"{one.pool.instance_type} in {one.pool.zone}: {', '.join(told)}"


def _choose(
    api: Api, settings: GcpSettings, request: LaunchRequest, spec: ModelSpec, before: str = ""
) -> tuple[Choice, list[Prospect]]:
    """The GPU to rent, so many a machine, and what the market says of its pools, the best first.

    A job's nodes are alike, so machine types with other GPUs, or another number of them, are another choice.
    `before` is what was chosen when the job began.

    Raises:
        InputError: none can hold the model; the message shows the arithmetic for each.
    """
    by_gpu: dict[str, list[Prospect]] = {}
    for prospect in prospects(api, settings, request.nodes):
        gpus = prospect.pool.gpus
        name = prospect.gpu if gpus == 1 else f"{gpus} x {prospect.gpu}"
        if before in ("", name):
            by_gpu.setdefault(name, []).append(prospect)
    if not by_gpu:
        raise InputError(f"--fleet: the job has begun on {before}, which none of its machine_types has")
    choice = choose(
        request,
        [
            Candidate(name, tuple(one.pool for one in found), _on_machine(spec, found, settings))
            for name, found in by_gpu.items()
        ],
    )
    return choice, by_gpu[choice.candidate.name]


def _on_machine(spec: ModelSpec, found: Sequence[Prospect], settings: GcpSettings) -> ModelSpec:
    """The model on a GPU of these machines, at the price of the best of them."""
    pool = found[0].pool
    spec = at_price(spec, pool)
    if settings.device == "model":
        return spec
    told = [name for one in found if (name := one.pool.instance_type) in settings.machines]
    if not told:
        known = ", ".join(sorted(settings.machines))
        raise InputError(f"--fleet: [machines.{pool.instance_type}] is missing: give its GPU as for {known}")
    gpu = settings.machines[told[0]]
    device = DeviceSpec(found[0].gpu, int(gpu.memory_bytes), gpu.flops_per_s, gpu.link_bytes_per_s)
    return replace(spec, device=device)

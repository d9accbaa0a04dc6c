"""The anchor on Compute Engine: one machine on demand for a job's launcher and backup, and its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cloud.anchor import AnchorRecord, BootFiles, wait_for_address
from cloud.ended import has_ended, mark_begun, mark_ended
from cloud.gcp.api import Api
from cloud.gcp.bootstrap import LEASE, STATE, startup_script
from cloud.gcp.errors import ApiError
from cloud.gcp.inserts import insert
from cloud.gcp.launch_record import LaunchRecord
from cloud.gcp.requests import SSH_PORT_ITEM, Request, anchor_request, items_of
from cloud.gcp.settings import GcpSettings
from cloud.gcp.sweep import end_launch, instances_of
from cloud.provider import CloudError, NoCapacityError
from cloud.types import SshTarget

_OVER = ("STOPPING", "STOPPED", "TERMINATED", "SUSPENDING", "SUSPENDED", "DEPROVISIONING")


def anchor_settings(settings: GcpSettings) -> GcpSettings:
    """The settings as the anchor's own boot needs them."""
    return replace(
        settings,
        python=settings.anchor_python,
        packages=settings.anchor_packages,
        image=settings.anchor_image,
    )


def request_in(record: LaunchRecord, settings: GcpSettings, kind: str, zone: str, number: int) -> Request:
    """The request for it in one zone; `number` counts the zones that are tried."""
    own = anchor_settings(settings)
    script = startup_script(own, record.host_key, settings.times.dead_man_s)
    public = record.client_key.public
    return anchor_request(
        record.owner, own, record.project, record.region, zone, kind, record.launch, number, public, script
    )


def rent_anchor(
    api: Api,
    settings: GcpSettings,
    folder: Path,
    job: str,
    kind: str,
    usd_per_hour: float,
    zones: Sequence[str],
    pause: Callable[[float], None] = time.sleep,
) -> AnchorRecord:
    """Rent it and wait for its address. Blocks; what is asked is in `folder` before it is sent.

    Raises:
        CloudError: it was refused, or it ended before it had an address.
    """
    record = LaunchRecord.at(folder, job, api.project, settings.region)
    mark_begun(folder)
    try:
        zone = _insert(api, settings, record, kind, zones)
        row = _with_address(api, settings, record, pause)
    except ApiError as error:
        raise error.sorted from error
    port = items_of([{"key": item.key, "value": item.value} for item in row.metadata.items])[SSH_PORT_ITEM]
    card = row.network_interfaces[0]
    host = card.access_configs[0].nat_i_p or card.network_i_p
    made = AnchorRecord(
        row.name,
        kind,
        zone,
        usd_per_hour,
        datetime.fromisoformat(row.creation_timestamp).timestamp(),
        SshTarget(host, int(port), settings.user, record.client_key.private, record.host_key.public),
        settings.anchor_python,
        BootFiles(f"{STATE}/ready", f"{STATE}/failed", f"{STATE}/log"),
        LEASE,
    )
    made.write(folder)
    return made


def _insert(api: Api, settings: GcpSettings, record: LaunchRecord, kind: str, zones: Sequence[str]) -> str:
    """The zone that had one.

    Raises:
        ApiError: it was refused; the request is still open if nobody knows what became of it.
        NoCapacityError: no zone has one.
    """
    whys = []
    for number, zone in enumerate(zones):
        request = request_in(record, settings, kind, zone, number)
        try:
            insert(api, record, request, settings.times.operation_s)
        except ApiError as error:
            if not error.elsewhere:
                raise
            whys.append(f"{zone}: {error.code}")
            continue
        record.done(request)
        return zone
    raise NoCapacityError(f"gcp: no zone has an {kind} for the anchor ({'; '.join(whys)})")


def _with_address(
    api: Api, settings: GcpSettings, record: LaunchRecord, pause: Callable[[float], None]
) -> Any:
    def look() -> Any | None:
        rows = instances_of(api, record.owner, record.region)
        if rows and rows[0].status in _OVER:
            raise CloudError(f"gcp: the anchor {rows[0].name} ended before it had booted")
        return rows[0] if rows and rows[0].status == "RUNNING" and rows[0].network_interfaces else None

    return wait_for_address(look, "gcp: the anchor", settings.times, pause)


def anchor_lives(folder: Path) -> bool:
    """Whether the API knows the anchor as anything but ended.

    Raises:
        CloudError: it does not answer.
    """
    if has_ended(folder):
        return False
    record = LaunchRecord.read(folder)
    try:
        rows = instances_of(Api(record.project), record.owner, record.region)
        return any(row.status not in _OVER for row in rows)
    except ApiError as error:
        raise error.sorted from error


def end_anchor(folder: Path, timeout_s: float) -> list[str]:
    """Delete it, and wait for the API's word; the names of what lived. It is asked about only once.

    Raises:
        MaybeStillRunningError: the API did not say that it is gone.
    """
    if has_ended(folder):
        return []
    ended = end_launch(folder, timeout_s)
    mark_ended(folder)
    return ended

"""Ending a launch: whatever was asked for, sent or not, nothing of it runs when this has returned."""

from __future__ import annotations

import time
from typing import Any

from cloud.gcp.api import Api
from cloud.gcp.errors import ApiError, Verdict
from cloud.gcp.launch_record import LaunchRecord
from cloud.gcp.requests import LAUNCH_LABEL, Owner, delete_request, last_part
from cloud.provider import MaybeStillRunningError

_AGAIN_S = 0.5


def instances_of(api: Api, owner: Owner | None) -> list[Any]:
    """Every instance that the API knows of this launch; None: of any launch of Parcae's.

    Raises:
        ApiError: it was refused.
    """
    request = {"project": api.project, "filter": owner.filter if owner else f"labels.{LAUNCH_LABEL}:*"}
    scopes = api.rows("InstancesClient", "aggregated_list", request)
    return [row for _, scoped in scopes for row in scoped.instances]


def settle(api: Api, record: LaunchRecord, timeout_s: float) -> None:
    """Find out what became of requests that were cut off, by sending them again under their own ids.

    One that had been carried out brings its operation and nothing new. One that had not been makes
    instances now, which the sweep that follows ends: that is dear, but for minutes only, and certain.

    Raises:
        ApiError: it cannot be found out.
    """
    for request in record.open_requests():
        try:
            operation = api.change("RegionInstancesClient", "bulk_insert", request)
            api.finish(operation, timeout_s)
        except ApiError as error:
            if error.verdict in (Verdict.WAIT, Verdict.CREDENTIALS):
                raise
        record.done(request)


def delete_until_gone(api: Api, owner: Owner, timeout_s: float) -> list[str]:
    """Delete every instance of the launch until the API shows none; the names of those that there were.

    Raises:
        MaybeStillRunningError: it still shows some.
        ApiError: it was refused.
    """
    deadline_s = time.monotonic() + timeout_s
    asked: set[str] = set()
    names: set[str] = set()
    while True:
        rows = instances_of(api, owner)
        names.update(row.name for row in rows)
        if not rows:
            return sorted(names)
        for row in rows:
            if row.name in asked or row.status == "STOPPING":
                continue
            if delete(api, row.name, last_part(row.zone)):
                asked.add(row.name)
        if time.monotonic() > deadline_s:
            left = ", ".join(sorted(row.name for row in rows))
            raise MaybeStillRunningError(
                f"gcp: the API still shows {left}; look at https://console.cloud.google.com/compute, "
                "then run `parcae down` again"
            )
        time.sleep(_AGAIN_S)


def delete(api: Api, name: str, zone: str) -> bool:
    """Ask for the end of an instance; one that is unknown has ended. False: ask again.

    Raises:
        ApiError: it was refused.
    """
    try:
        api.change("InstancesClient", "delete", delete_request(api.project, zone, name))
    except ApiError as error:
        if error.verdict is Verdict.WAIT:
            return False
        if error.verdict is not Verdict.NOT_FOUND:
            raise
    return True

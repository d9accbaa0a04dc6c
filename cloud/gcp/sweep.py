"""Ending a launch: whatever was asked for, sent or not, nothing of it runs when this has returned."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cloud.gcp.api import Api
from cloud.gcp.errors import ApiError, Verdict
from cloud.gcp.inserts import settle
from cloud.gcp.launch_record import LaunchRecord
from cloud.gcp.requests import LAUNCH_LABEL, Owner, delete_request, last_part
from cloud.provider import MaybeStillRunningError

_FIRST_POLL_S, _POLL_S = 0.05, 2.0
_AGAIN_S = 15.0  # who does not begin to end by then is asked again: the operation may have failed


def instances_of(api: Api, owner: Owner | None, region: str = "") -> list[Any]:
    """Every instance that the API knows of this launch (in the region); None: of any launch of Parcae's.

    Raises:
        ApiError: it was refused, or a zone (of the region) cannot be seen.
    """
    rows, dark = seen_instances(api, owner, region)
    if dark:
        raise ApiError("InstancesClient.aggregated_list", "backendError", f"cannot see {_list(dark)}", 503)
    return rows


def seen_instances(api: Api, owner: Owner | None, region: str = "") -> tuple[list[Any], set[str]]:
    """The same as far as it can be seen, and the zones (of the region) that the API could not reach.

    Raises:
        ApiError: it was refused.
    """
    request = {"project": api.project, "filter": owner.filter if owner else f"labels.{LAUNCH_LABEL}:*"}
    scopes = api.rows("InstancesClient", "aggregated_list", request)
    dark = {last_part(scope) for scope, scoped in scopes if scoped.warning.code == "UNREACHABLE"}
    rows = [row for _, scoped in scopes for row in scoped.instances]
    return rows, {zone for zone in dark if zone.startswith(region)}


def in_doubt(error: Exception, names: Iterable[str] = ()) -> MaybeStillRunningError:
    """The API does not answer as it should: who may still be running, and what ends it in any case."""
    left = ", ".join(sorted(names)) or "instances of this job"
    return MaybeStillRunningError(
        f"gcp: cannot see to the end of {left}: {error}. Machines end by themselves after their "
        "longest time (`longest_run_s`); run `parcae down` again when this is mended"
    )


def delete_until_gone(api: Api, owner: Owner, timeout_s: float, region: str = "") -> list[str]:
    """Delete every instance of the launch until the API shows none; the names of those that there were.

    Raises:
        MaybeStillRunningError: it still shows some, or cannot see a zone of the region.
        ApiError: it was refused.
    """
    deadline_s = time.monotonic() + timeout_s
    asked_s: dict[str, float] = {}
    names: set[str] = set()
    pause_s = _FIRST_POLL_S
    while True:
        rows, dark = seen_instances(api, owner, region)
        names.update(row.name for row in rows)
        if not rows and not dark:
            return sorted(names)
        for row in rows:
            if row.status == "STOPPING" or time.monotonic() - asked_s.get(row.name, -math.inf) < _AGAIN_S:
                continue
            if delete(api, row.name, last_part(row.zone)):
                asked_s[row.name] = time.monotonic()
        if time.monotonic() > deadline_s:
            left = f"still shows {_list(row.name for row in rows)}" if rows else f"cannot see {_list(dark)}"
            raise MaybeStillRunningError(
                f"gcp: the API {left}; look at https://console.cloud.google.com/compute, "
                "then run `parcae down` again"
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _POLL_S)


def end_launch(folder: Path, timeout_s: float) -> list[str]:
    """Delete what a launch has left, by the records in its folder; the names of what lived.

    Raises:
        MaybeStillRunningError: the API did not say that all of it is gone.
    """
    if not (folder / "launch.json").exists():
        return []
    record = LaunchRecord.read(folder)
    try:
        api = Api(record.project)
        settle(api, record, timeout_s)
        return delete_until_gone(api, record.owner, timeout_s, record.region)
    except ApiError as error:
        raise in_doubt(error) from error


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


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))

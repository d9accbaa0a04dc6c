"""Ending everything of one launch: found by tag, terminated, and waited for until the API says so."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from cloud.aws.api import Api, ApiError
from cloud.aws.errors import Verdict
from cloud.aws.launch_record import LaunchRecord, requests_folder, used_regions
from cloud.aws.requests import LAUNCH_TAG, Owner
from cloud.aws.shared import remove_launch
from cloud.ended import has_ended, mark_ended
from cloud.provider import CloudError, MaybeStillRunningError

_LIVE = ("pending", "running", "shutting-down", "stopping", "stopped")
_FIRST_POLL_S, _POLL_S = 0.1, 2.0
# An instance shows up in DescribeInstances some seconds after its launch; EC2 has no word on how many.
UNKNOWN_FOR_S = 30.0
REPLAY_FOR_S = 900.0
# How the files begin that hold an anchor's RunInstances; the others are CreateFleet.
ANCHOR_REQUEST = "anchor-"


def launch_rows(api: Api, owner: Owner) -> list[dict[str, Any]]:
    """Every instance of a launch, ended ones included for a while."""
    reservations = api.pages("describe_instances", {"Filters": owner.filters()}, "Reservations")
    return [row for reservation in reservations for row in reservation["Instances"]]


def terminate_until_gone(
    api: Api, owner: Owner, known: Iterable[str], timeout_s: float, unknown_for_s: float = UNKNOWN_FOR_S
) -> list[dict[str, Any]]:
    """Terminate what carries the launch's tag and what is `known`; returns the last rows of all of them.

    Raises:
        MaybeStillRunningError: the API did not say `terminated` of all of them in time, or did not answer.
    """
    deadline_s = time.monotonic() + timeout_s
    names = set(known)
    asked: set[str] = set()
    began_s = time.monotonic()
    pause_s = _FIRST_POLL_S
    try:
        while True:
            rows = {row["InstanceId"]: row for row in launch_rows(api, owner)}
            for name in names - set(rows):
                rows |= _row(api, name)
            live = {name for name, row in rows.items() if row["State"]["Name"] in _LIVE}
            unseen = names - set(rows)
            for name in sorted((live | unseen) - asked):
                if _terminate(api, name):
                    asked.add(name)
            names |= set(rows)
            if not live and (not unseen or time.monotonic() - began_s > unknown_for_s):
                return list(rows.values())
            if time.monotonic() > deadline_s:
                raise MaybeStillRunningError(
                    f"aws: after {timeout_s:.0f} s the API does not call these terminated: "
                    f"{', '.join(sorted(live | unseen))}; run `parcae down` again, or look at the EC2 console"
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_S)
    except MaybeStillRunningError:
        raise
    except CloudError as error:
        left = ", ".join(sorted(names)) or "instances of this job"
        raise MaybeStillRunningError(
            f"aws: cannot see to the end of {left}: {error}. They shut themselves down when their lease runs "
            "out; to be sure, run `parcae down` again when this is mended"
        ) from error


def _terminate(api: Api, name: str) -> bool:
    try:
        api.call("terminate_instances", {"InstanceIds": [name]})
    except ApiError as error:
        if error.verdict is not Verdict.NOT_FOUND:
            raise
        return False
    return True


def _row(api: Api, name: str) -> dict[str, dict[str, Any]]:
    try:
        reply = api.call("describe_instances", {"InstanceIds": [name]})
    except ApiError as error:
        if error.verdict is not Verdict.NOT_FOUND:
            raise
        return {}
    return {row["InstanceId"]: row for found in reply["Reservations"] for row in found["Instances"]}


def end_launch(folder: Path, timeout_s: float, pause: Callable[[float], None] = time.sleep) -> list[str]:
    """See a launch to its end from another process, by what its folder tells; the ids that were ended.

    Raises:
        MaybeStillRunningError: that cannot be said of all of it.
        CredentialsError: there are no credentials, or no boto3.
    """
    if has_ended(folder):
        return []
    record = LaunchRecord.read(folder / "launch.json")
    ended: list[str] = []
    doubts: list[str] = []
    for region in used_regions(folder, record):
        try:
            ended += _end_in(Api(region, pause), record, folder, timeout_s)
        except MaybeStillRunningError as error:  # what is in the other regions costs money, too
            doubts.append(str(error))
    if doubts:
        raise MaybeStillRunningError("; ".join(doubts))
    mark_ended(folder)
    return sorted(ended)


def _end_in(api: Api, record: LaunchRecord, folder: Path, timeout_s: float) -> set[str]:
    try:
        known = replay_requests(api, folder)
        live = {row["InstanceId"] for row in launch_rows(api, record.owner) if row["State"]["Name"] in _LIVE}
    except CloudError as error:
        raise MaybeStillRunningError(
            f"aws: cannot see what {record.job} has left in {api.region}: {error}"
        ) from error
    terminate_until_gone(api, record.owner, known, timeout_s)
    remove_launch(api, record.owner, True, record.events)
    return live | known


def strangers(api: Api, launches: Collection[str]) -> list[dict[str, Any]]:
    """Live instances of Parcae that belong to none of these launches: another machine's, or nobody's."""
    filters = [
        {"Name": "tag-key", "Values": [LAUNCH_TAG]},
        {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]},
    ]
    reservations = api.pages("describe_instances", {"Filters": filters}, "Reservations")
    rows = [row for reservation in reservations for row in reservation["Instances"]]
    return [
        row
        for row in rows
        if not any(tag["Key"] == LAUNCH_TAG and tag["Value"] in launches for tag in row.get("Tags", []))
    ]


def recent_requests(folder: Path, region: str) -> list[Path]:
    """The CreateFleet requests that were written down so lately that a sweep by tag may not show all yet."""
    found = sorted(requests_folder(folder, region).glob("*.json"))
    if LaunchRecord.read(folder / "launch.json").region == region:
        found += sorted((folder / "requests").glob("*.json"))
    return [path for path in found if time.time() - path.stat().st_mtime <= REPLAY_FOR_S]


def replay_requests(api: Api, folder: Path) -> set[str]:
    """Send again every request that was written down; the instances that it names.

    A token that EC2 knows brings the instances of the first time, also those that no sweep shows yet. One
    that it does not know launches now what is then terminated at once: the price of knowing. Older ones are
    left alone, since by then the sweep by tag shows everything.
    """
    found: set[str] = set()
    for path in recent_requests(folder, api.region):
        request: Mapping[str, Any] = json.loads(path.read_text())
        anchor = path.name.startswith(ANCHOR_REQUEST)
        try:
            reply = api.call("run_instances" if anchor else "create_fleet", request)
        except ApiError as error:
            if error.verdict in (Verdict.CREDENTIALS, Verdict.WAIT):
                raise
            continue  # refused for good: it has brought nothing, and never will
        for row in reply.get("Instances", []):
            found |= {row["InstanceId"]} if anchor else set(row["InstanceIds"])
    return found

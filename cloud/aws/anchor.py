"""The anchor on EC2: one machine on demand for a job's launcher and backup, and its end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from cloud.anchor import AnchorRecord, BootFiles, wait_for_address
from cloud.aws import bootstrap
from cloud.aws.api import Api, ApiError
from cloud.aws.errors import Verdict
from cloud.aws.instances import seen
from cloud.aws.launch_record import LaunchRecord
from cloud.aws.requests import PoolPlan, anchor_request, key_pair_name
from cloud.aws.settings import AwsSettings
from cloud.aws.shared import client_key, ensure_group, ensure_key_pair, image_id
from cloud.aws.sweep import ANCHOR_REQUEST, end_launch, launch_rows
from cloud.ended import has_ended, mark_begun
from cloud.private_file import write_private
from cloud.provider import CloudError, NoCapacityError
from cloud.types import InstanceState, SshTarget


def anchor_settings(settings: AwsSettings) -> AwsSettings:
    """The settings as the anchor's own boot needs them."""
    return replace(
        settings,
        python=settings.anchor_python,
        packages=settings.anchor_packages,
        image=settings.anchor_image,
        image_parameter=settings.anchor_image_parameter,
    )


def anchor_subnets(plans: Sequence[PoolPlan]) -> list[tuple[str, str]]:
    """Zones and subnets to try, the one of the best pool first: the backup's traffic then stays in a zone."""
    return list(dict.fromkeys((plan.pool.zone, plan.subnet) for plan in plans))


def rent_anchor(
    api: Api,
    settings: AwsSettings,
    folder: Path,
    job: str,
    kind: str,
    usd_per_hour: float,
    subnets: Sequence[tuple[str, str]],
    vpc: str,
    pause: Callable[[float], None] = time.sleep,
) -> AnchorRecord:
    """Rent it and wait for its address. Blocks; what is asked is in `folder` before it is sent.

    Raises:
        CloudError: it was refused, or it ended before it had an address.
    """
    record = LaunchRecord.at(folder, job, api.region)
    mark_begun(folder)
    own = anchor_settings(settings)
    private, public, fingerprint = client_key(folder)
    try:
        key_name = ensure_key_pair(api, public, fingerprint)
        group = ensure_group(api, settings, vpc)
        image = image_id(api, own)
    except ApiError as error:
        raise error.sorted from error
    told = bootstrap.user_data(own, record.host_key, settings.times.anchor_longest_s)
    name, zone, whys = "", "", []
    for number, (zone, subnet) in enumerate(subnets):
        token = f"{record.launch}-{number}"
        request = anchor_request(
            record.owner, settings.anchor_profile, kind, image, key_name, group, subnet, told, token
        )
        write_private(folder / "requests" / f"{ANCHOR_REQUEST}{number}.json", json.dumps(request))
        try:
            name = str(api.call("run_instances", request)["Instances"][0]["InstanceId"])
            break
        except ApiError as error:
            if error.verdict is not Verdict.NEXT_POOL:
                raise error.sorted from error
            whys.append(f"{zone}: {error.code}")
    if not name:
        raise NoCapacityError(f"aws: no zone has an {kind} for the anchor ({'; '.join(whys)})")

    def look() -> AnchorRecord | None:
        rows = {row["InstanceId"]: seen(row) for row in launch_rows(api, record.owner)}
        one = rows.get(name)
        if one is not None and one.ended:
            raise CloudError(f"aws: the anchor {name} ended before it had booted")
        if one is None or one.instance.state is not InstanceState.RUNNING or not one.public_ip:
            return None
        return AnchorRecord(
            name, kind, zone, usd_per_hour, one.instance.launched_s,
            SshTarget(one.public_ip, settings.ssh_port, settings.user, private, record.host_key.public),
            own.python,
            BootFiles(bootstrap.READY, bootstrap.FAILED, bootstrap.LOG),
            f'"$HOME"/{bootstrap.LEASE}',
        )  # fmt: skip

    made = wait_for_address(look, f"aws: the anchor {name}", settings.times, pause)
    made.write(folder)
    return made


def anchor_lives(folder: Path) -> bool:
    """Whether the API knows the anchor as anything but ended.

    Raises:
        CloudError: it does not answer.
    """
    if has_ended(folder):
        return False
    record = LaunchRecord.read(folder / "launch.json")
    return any(not seen(row).ended for row in launch_rows(Api(record.region), record.owner))


def end_anchor(folder: Path, timeout_s: float) -> list[str]:
    """Terminate it, wait for the API's word, and remove its key pair; the ids of what lived.

    Raises:
        MaybeStillRunningError: the API did not say that it is gone.
    """
    if has_ended(folder):
        return []
    ended = end_launch(folder, timeout_s)
    _, _, fingerprint = client_key(folder)
    api = Api(LaunchRecord.read(folder / "launch.json").region)
    with suppress(CloudError):  # it opens nothing any more
        api.call("delete_key_pair", {"KeyName": key_pair_name(fingerprint)})
    return ended

"""EC2's instances as ours: states, names and reasons. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloud.aws.requests import JOB_TAG, TOKEN_TAG
from cloud.rented import Seen
from cloud.types import Instance, InstanceState, Pool

# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_InstanceState.html
STATES: Mapping[str, InstanceState] = {
    "pending": InstanceState.BOOTING,
    "running": InstanceState.RUNNING,
    "shutting-down": InstanceState.TERMINATING,
    "stopping": InstanceState.TERMINATING,
    "stopped": InstanceState.TERMINATING,
    "terminated": InstanceState.TERMINATED,
}
_TAKEN = (
    "Server.SpotInstanceTermination",
    "Server.SpotInstanceShutdown",
    "Server.InsufficientInstanceCapacity",
)


def seen(row: Mapping[str, Any], pool: Pool | None = None, ssh_port: int = 22) -> Seen:
    """From one entry of DescribeInstances. `pool` brings the prices that the API does not tell."""
    tags = {tag["Key"]: tag["Value"] for tag in row.get("Tags", [])}
    zone = row.get("Placement", {}).get("AvailabilityZone", "")
    kind = row.get("InstanceType", "")
    launched = row.get("LaunchTime")
    return Seen(
        Instance(
            id=row["InstanceId"],
            name=row["InstanceId"],
            job=tags.get(JOB_TAG, ""),
            token=tags.get(TOKEN_TAG, ""),
            pool=pool or Pool(zone, kind, 1, 0.0, 0.0),
            state=STATES.get(row.get("State", {}).get("Name", ""), InstanceState.BOOTING),
            launched_s=launched.timestamp() if launched is not None else 0.0,
        ),
        row.get("PublicIpAddress", "") or "",
        row.get("PrivateIpAddress", "") or "",
        ssh_port,
        row.get("StateReason", {}).get("Code", "") in _TAKEN,
    )

"""What spot requests tell of an end to come: EC2 marks them when it takes an instance back."""

from __future__ import annotations

from collections.abc import Sequence

from cloud.aws.api import Api
from cloud.aws.event_requests import NOTICE_S
from cloud.types import Notice, NoticeKind

MOST_VALUES = 200  # of a filter, else EC2 says FilterLimitExceeded


def marked(api: Api, running: Sequence[str]) -> dict[str, Notice]:
    """Of these instances, those whose requests are marked for termination, with their deadlines.

    Raises:
        ApiError: as of any call.
    """
    found: dict[str, Notice] = {}
    for first in range(0, len(running), MOST_VALUES):
        filters = [
            {"Name": "instance-id", "Values": list(running[first : first + MOST_VALUES])},
            {"Name": "status-code", "Values": ["marked-for-termination"]},
        ]
        asked = {"Filters": filters}
        for row in api.pages("describe_spot_instance_requests", asked, "SpotInstanceRequests"):
            end_s = row["Status"]["UpdateTime"].timestamp() + NOTICE_S
            found[row["InstanceId"]] = Notice(NoticeKind.INTERRUPTION, end_s)
    return found

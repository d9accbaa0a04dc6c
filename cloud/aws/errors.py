"""EC2's error codes, sorted by what to do next.

Sources: the EC2 API reference, "Error codes", and the errors of CreateFleet. The grouping is ours.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

from cloud.provider import CloudError, CredentialsError, NoCapacityError, QuotaError

_LOG = logging.getLogger(__name__)
_SKEW_S = 240.0  # AWS refuses signatures that are five minutes off


class Verdict(StrEnum):
    """What to do about an error."""

    NEXT_POOL = "next pool"
    WAIT = "wait"
    QUOTA = "quota"
    CREDENTIALS = "credentials"
    NOT_FOUND = "not found"
    FATAL = "fatal"


_CODES: Mapping[Verdict, tuple[str, ...]] = {
    Verdict.NEXT_POOL: (
        "InsufficientInstanceCapacity", "InsufficientHostCapacity", "InsufficientCapacity",
        "InsufficientFreeAddressesInSubnet", "Unsupported", "UnsupportedOperation",
        "InvalidFleetConfiguration", "UnfulfillableCapacity",
    ),
    Verdict.WAIT: (
        "RequestLimitExceeded", "Throttling", "ThrottlingException", "RequestThrottled", "Unavailable",
        "ServiceUnavailable", "InternalError", "InternalFailure", "RequestTimeout",
        "IncorrectState", "IdempotentInstanceTerminated", "ConcurrentTagAccess",
    ),
    Verdict.QUOTA: (
        "MaxSpotInstanceCountExceeded", "VcpuLimitExceeded", "InstanceLimitExceeded",
        "MaxSpotFleetRequestCountExceeded", "SecurityGroupLimitExceeded", "TooManyRequests.Quota",
    ),
    Verdict.CREDENTIALS: (
        "UnauthorizedOperation", "AuthFailure", "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
        "InvalidClientTokenId", "ExpiredToken", "ExpiredTokenException", "RequestExpired",
        "RequestTimeTooSkewed", "SignatureDoesNotMatch", "UnrecognizedClientException", "OptInRequired",
        "AccessDenied", "AccessDeniedException", "Blocked", "PendingVerification", "InvalidSecurity",
    ),
    Verdict.NOT_FOUND: (
        "InvalidInstanceID.NotFound", "InvalidGroup.NotFound", "InvalidKeyPair.NotFound",
        "InvalidLaunchTemplateId.NotFound", "InvalidLaunchTemplateName.NotFoundException",
        "InvalidPlacementGroup.Unknown", "ParameterNotFound", "NoSuchResourceException",
        "ResourceNotFoundException", "QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue",
    ),
    Verdict.FATAL: (
        "SpotMaxPriceTooLow", "IdempotentParameterMismatch", "InvalidParameter", "InvalidParameterValue",
        "InvalidParameterCombination", "MissingParameter", "InvalidAMIID.NotFound", "InvalidAction",
        "MalformedQueryString", "ValidationError", "InvalidUserData.Malformed",
        "QueueDeletedRecently", "AWS.SimpleQueueService.QueueDeletedRecently", "QueueNameExists",
    ),
}  # fmt: skip
_BY_CODE = {code: verdict for verdict, codes in _CODES.items() for code in codes}

# vCPU quotas of spot instances, by the type's family (Service Quotas, service code ec2).
SPOT_QUOTAS: Mapping[str, tuple[str, str]] = {
    "g": ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    "vt": ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    "p": ("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
    "p5": ("L-C4BD4855", "All P5 Spot Instance Requests"),
    "inf": ("L-B5D1601B", "All Inf Spot Instance Requests"),
    "trn": ("L-6B0D517C", "All Trn Spot Instance Requests"),
    "x": ("L-E3A00192", "All X Spot Instance Requests"),
}
_STANDARD_QUOTA = ("L-34B43A08", "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests")

_ON_DEMAND_QUOTA = ("L-1216C47A", "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances")


def quota_of(instance_type: str) -> tuple[str, str]:
    """Code and name of the quota that limits the spot vCPUs of a type."""
    family = instance_type.split(".", 1)[0]
    if family.startswith("p5"):
        return SPOT_QUOTAS["p5"]
    letters = family[: next((k for k, char in enumerate(family) if char.isdigit()), len(family))]
    return SPOT_QUOTAS.get(letters, _STANDARD_QUOTA)


def verdict_of(code: str, http_status: int = 400) -> Verdict:
    """What to do about an error code. An unknown one sends us to the next pool, and into the log."""
    known = _BY_CODE.get(code)
    if known is not None:
        return known
    if code.endswith((".NotFound", ".NotFoundException")):
        return Verdict.NOT_FOUND
    if code.startswith(("InvalidParameter", "Invalid")) and http_status < 500:
        return Verdict.FATAL
    _LOG.warning("EC2 error %s (HTTP %d) is unknown to us: trying the next pool", code, http_status)
    return Verdict.NEXT_POOL


def refused(verdict: Verdict, call: str, code: str, said: str, instance_type: str = "") -> CloudError:
    """The error that a caller of ours sees, with the next thing to do."""
    text = f"aws {call}: {code}: {said.strip().rstrip('.')}"
    if verdict is Verdict.QUOTA:
        number, name = quota_of(instance_type or "g5.xlarge")
        if call == "run_instances":  # which rents on demand
            number, name = _ON_DEMAND_QUOTA
        return QuotaError(
            f"{text}. The quota in the way is {name!r} ({number}): ask for more at "
            "https://console.aws.amazon.com/servicequotas/ (EC2), or use fewer nodes"
        )
    if verdict is Verdict.CREDENTIALS:
        return CredentialsError(
            f"{text}. Check `aws sts get-caller-identity` and the permissions of that user"
        )
    if verdict is Verdict.NEXT_POOL and call == "create_fleet":
        return NoCapacityError(text)
    return CloudError(text)


def from_client_error(call: str, response: Mapping[str, Any], now: datetime | None = None) -> CloudError:
    """From the `response` of a botocore ClientError."""
    code = str(response.get("Error", {}).get("Code", "Unknown"))
    said = str(response.get("Error", {}).get("Message", ""))
    metadata = response.get("ResponseMetadata", {})
    verdict = verdict_of(code, int(metadata.get("HTTPStatusCode", 400)))
    if verdict is Verdict.CREDENTIALS:
        skew_s = clock_skew_s(metadata.get("HTTPHeaders", {}).get("date", ""), now or datetime.now(UTC))
        if abs(skew_s) > _SKEW_S:
            said += f" (this machine's clock is {skew_s:+.0f} s off AWS's: set it, e.g. with chrony)"
    return refused(verdict, call, code, said)


def clock_skew_s(http_date: str, now: datetime) -> float:
    """How far our clock is ahead of the server's Date header, in seconds; 0 where there is none."""
    try:
        return (now - parsedate_to_datetime(http_date)).total_seconds()
    except (TypeError, ValueError):
        return 0.0

"""Compute Engine's error codes, sorted by what to do next.

They come in two places: as the HTTP answer to a call (`reason`), and inside an operation that was accepted
and then failed (`code`). Sources: Compute Engine's documentation, "Troubleshooting VM creation" and "Handling
API errors". The grouping is ours.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import StrEnum

from cloud.provider import CloudError, CredentialsError, NoCapacityError, QuotaError

_LOG = logging.getLogger(__name__)


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
        "ZONE_RESOURCE_POOL_EXHAUSTED", "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
        "REGION_RESOURCE_POOL_EXHAUSTED", "REGION_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "STOCKOUT",
        "VM_MIN_COUNT_NOT_REACHED", "UNSUPPORTED_OPERATION", "IP_SPACE_EXHAUSTED",
        "IP_SPACE_EXHAUSTED_WITH_DETAILS", "resourcesExhausted",
    ),
    Verdict.WAIT: (
        "rateLimitExceeded", "userRateLimitExceeded", "RATE_LIMIT_EXCEEDED", "backendError", "internalError",
        "INTERNAL_ERROR", "RESOURCE_OPERATION_RATE_EXCEEDED", "resourceNotReady", "RESOURCE_NOT_READY",
        "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", "conditionNotMet",
    ),
    Verdict.QUOTA: ("QUOTA_EXCEEDED", "quotaExceeded", "limitExceeded", "LIMIT_EXCEEDED"),
    Verdict.CREDENTIALS: (
        "forbidden", "PERMISSION_DENIED", "PERMISSIONS_ERROR", "accessNotConfigured", "authError", "required",
        "billingNotEnabled", "BILLING_DISABLED", "expired", "insufficientPermissions",
    ),
    Verdict.NOT_FOUND: ("notFound", "RESOURCE_NOT_FOUND"),
    Verdict.FATAL: (
        "invalid", "badRequest", "INVALID_FIELD_VALUE", "invalidParameter", "required_field", "INVALID_USAGE",
        "parseError", "alreadyExists", "RESOURCE_ALREADY_EXISTS",
    ),
}  # fmt: skip
_BY_CODE = {code: verdict for verdict, codes in _CODES.items() for code in codes}


def verdict_of(code: str, http_status: int = 400) -> Verdict:
    """What to do about an error. An unknown one sends us to the next pool, and into the log."""
    if (known := _BY_CODE.get(code)) is not None:
        return known
    if code.endswith(("_POOL_EXHAUSTED", "_WITH_DETAILS")):
        return Verdict.NEXT_POOL
    by_status = {
        401: Verdict.CREDENTIALS, 403: Verdict.CREDENTIALS, 404: Verdict.NOT_FOUND, 429: Verdict.WAIT
    }  # fmt: skip
    if http_status in by_status:
        return by_status[http_status]
    if http_status >= 500:
        return Verdict.WAIT
    _LOG.warning("Compute Engine's error %s (HTTP %d) is unknown to us: next pool", code, http_status)
    return Verdict.NEXT_POOL


class ApiError(Exception):
    """A call that was refused, or an operation that failed.

    `ended`: an operation has ended with it, and the same request will bring that same end again.
    `again`: the call had been sent before, and nobody knows what became of that.
    """

    def __init__(self, call: str, code: str, said: str, http_status: int = 400, ended: bool = False) -> None:
        super().__init__(f"gcp {call}: {code}: {said.strip().rstrip('.')}")
        self.code = code
        self.verdict = verdict_of(code, http_status)
        self.ended, self.again = ended, False

    @property
    def refused(self) -> bool:
        """Whether what was asked for was surely not carried out, now or before.

        Who is not let in is not told what became of an earlier try.
        """
        unsure = (Verdict.WAIT, Verdict.CREDENTIALS) if self.again else (Verdict.WAIT,)
        return self.ended or self.verdict not in unsure

    @property
    def elsewhere(self) -> bool:
        """Whether another pool may have what this one did not give."""
        return self.verdict is Verdict.NEXT_POOL or (self.ended and self.verdict is Verdict.WAIT)

    @property
    def sorted(self) -> CloudError:
        """The error that a caller of ours sees, with the next thing to do."""
        if self.verdict is Verdict.QUOTA:
            return QuotaError(
                f"{self}. Ask for more at https://console.cloud.google.com/iam-admin/quotas, or use fewer "
                "nodes"
            )
        if self.verdict is Verdict.CREDENTIALS:
            return CredentialsError(
                f"{self}. Check `gcloud auth application-default print-access-token`, the project, and that "
                "its Compute Engine API is enabled"
            )
        if self.verdict is Verdict.NEXT_POOL:
            return NoCapacityError(str(self))
        return CloudError(str(self))

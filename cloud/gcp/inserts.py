"""Asking for instances: on record before it is sent, and until its outcome is known."""

from __future__ import annotations

from cloud.gcp.api import Api
from cloud.gcp.errors import ApiError, Verdict
from cloud.gcp.launch_record import LaunchRecord
from cloud.gcp.requests import Request

_CLIENT, _METHOD = "RegionInstancesClient", "bulk_insert"


def insert(api: Api, record: LaunchRecord, request: Request, timeout_s: float) -> None:
    """Send it and wait for its operation, whose name is on the disk before it is waited for.

    It stays on record: the caller takes it off when it has seen what was made. One that was refused is off.

    Raises:
        ApiError: it was refused, or nobody knows what became of it: then it is on record for `settle`.
    """
    record.sending(request)
    try:
        operation = api.change(_CLIENT, _METHOD, request)
        record.accepted(request, operation.name)
    except ApiError as error:
        if error.refused:
            record.done(request)
        raise
    try:
        api.finish(operation, timeout_s)
    except ApiError as error:
        if error.ended:  # else it goes on, whatever has kept us from looking
            record.done(request)
        raise


def settle(api: Api, record: LaunchRecord, timeout_s: float) -> None:
    """Find out what became of requests that were cut off, by sending them again under their own ids.

    One that had been carried out brings its operation and nothing new. One that had not been makes
    instances now, which the sweep that follows ends: that is dear, but for minutes only, and certain.

    Raises:
        ApiError: it cannot be found out.
    """
    for request in record.open_requests():
        try:
            operation = api.change(_CLIENT, _METHOD, request)
        except ApiError as error:
            if error.verdict in (Verdict.WAIT, Verdict.CREDENTIALS):
                raise
        else:
            try:
                api.finish(operation, timeout_s)
            except ApiError as error:
                if not error.ended:
                    raise
        record.done(request)

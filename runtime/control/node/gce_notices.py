"""Watching Google's metadata server for the end of an instance.

`instance/preempted` turns TRUE when the machine has been preempted. It is told to power off at once, which
a node of ours does not heed, and loses its power 30 s later; where `preemptionNoticeDuration` is asked for,
that word comes so much later. `instance/maintenance-event` announces the host's maintenance, for GPU
machines up to an hour before: for us a hint without a deadline. A request with `wait_for_change` is held
back until the value differs from the one with the ETag that we name.

Source: Compute Engine's documentation, "Query VM metadata" and "Spot VMs", and the API's own of
`Scheduling` (`preemptionNoticeDuration`, `skipGuestOsShutdown`). Standard library only: agents start with
it.
"""

from __future__ import annotations

import http.client
import threading
import time
import urllib.parse
from collections.abc import Callable

from cloud.types import Notice, NoticeKind

_HOLD_S = 60
_GRACE_S = 10.0
_FLAVOR = {"Metadata-Flavor": "Google"}
PREEMPTED = "instance/preempted"
MAINTENANCE = "instance/maintenance-event"


class GceMetadataClient:
    """One kept connection to the metadata server."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._connection = http.client.HTTPConnection(
            parts.hostname or "", parts.port or 80, timeout=_HOLD_S + _GRACE_S
        )
        self._etags: dict[str, str] = {}

    def wait(self, path: str) -> str | None:
        """The value at `/computeMetadata/v1/<path>`: at once the first time, later when it has changed, or
        after a minute. None: there is no such value, or who answers is not the metadata server.

        Raises:
            OSError, http.client.HTTPException: the server does not answer.
        """
        query = ""
        if path in self._etags:
            asked = {"wait_for_change": "true", "last_etag": self._etags[path], "timeout_sec": str(_HOLD_S)}
            query = "?" + urllib.parse.urlencode(asked)
        try:
            self._connection.request("GET", f"/computeMetadata/v1/{path}{query}", headers=_FLAVOR)
            reply = self._connection.getresponse()
            text = reply.read().decode()
        except BaseException:
            self._connection.close()
            raise
        if reply.status != 200 or reply.headers.get("Metadata-Flavor") != "Google":
            return None
        if etag := reply.headers.get("ETag"):
            self._etags[path] = etag
        return text


def parse_preempted(text: str, now_s: float, notice_s: float) -> Notice | None:
    """A notice from `instance/preempted`; None while the machine is not. Times in Unix seconds."""
    if text.strip() != "TRUE":
        return None
    return Notice(NoticeKind.INTERRUPTION, now_s + notice_s)


def parse_maintenance(text: str) -> Notice | None:
    """A hint from `instance/maintenance-event`; NONE and anything unknown are none."""
    if text.strip() in ("TERMINATE_ON_HOST_MAINTENANCE", "MIGRATE_ON_HOST_MAINTENANCE"):
        return Notice(NoticeKind.REBALANCE, None)
    return None


class GceNoticeWatch:
    """Two threads, one waiting for each value; they call `tell` for each change that means something.

    `notice_s` is how long before the end the cloud warns; after an error, or where the server does not hold a
    request back, the next comes `period_s` later.
    """

    def __init__(self, url: str, notice_s: float, period_s: float, tell: Callable[[Notice], None]) -> None:
        self._url, self._notice_s, self._period_s, self._tell = url, notice_s, period_s, tell
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin to watch."""
        for path in (PREEMPTED, MAINTENANCE):
            threading.Thread(target=self._watch, args=(path,), name=path, daemon=True).start()

    def stop(self) -> None:
        """End after the requests in progress."""
        self._ended.set()

    def _watch(self, path: str) -> None:
        client = GceMetadataClient(self._url)
        last = ""
        while not self._ended.is_set():
            asked_s = time.monotonic()
            try:
                text = client.wait(path)
            except (OSError, http.client.HTTPException):
                text = None
            if text is not None and text != last:
                last = text
                notice = (
                    parse_preempted(text, time.time(), self._notice_s)
                    if path == PREEMPTED
                    else parse_maintenance(text)
                )
                if notice is not None:
                    self._tell(notice)
            elif text is None or time.monotonic() - asked_s < self._period_s:
                self._ended.wait(self._period_s)

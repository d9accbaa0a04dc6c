"""Watching an instance's metadata service for the cloud's warnings.

Standard library only: agents start with it.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.parse
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime

from cloud.types import Notice, NoticeKind

_TOKEN_TTL_S = 21600
_TIMEOUT_S = 2.0
# A Date header is rounded down to a second, and travels; what differs more is a clock that is wrong.
_SKEW_S = 3.0
# The hint about rebalancing is weak and early: looking for it at every poll would double the work for
# nothing. AWS asks for 5 s; who polls faster looks at every tenth time at the latest.
HINT_EVERY_S, HINT_EVERY_POLLS = 5.0, 10


class MetadataClient:
    """AWS IMDSv2 over one kept connection.

    Any answer but 200 reads as None; a new token is fetched after a 401.
    """

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._connection = http.client.HTTPConnection(
            parts.hostname or "", parts.port or 80, timeout=_TIMEOUT_S
        )
        self._token: str | None = None
        self.ahead_s = 0.0  # how far our clock is ahead of the service's, by its last answer

    def read(self, path: str) -> str | None:
        """The value at `/latest/meta-data/<path>`.

        Raises:
            OSError, http.client.HTTPException: the service does not answer.
        """
        for _ in range(2):
            if self._token is None:
                headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL_S)}
                status, self._token = self._ask("PUT", "/latest/api/token", headers)
                if status != 200:
                    self._token = None
                    return None
            headers = {"X-aws-ec2-metadata-token": self._token}
            status, text = self._ask("GET", f"/latest/meta-data/{path}", headers)
            if status != 401:
                return text if status == 200 else None
            self._token = None
        return None

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        try:
            self._connection.request(method, path, headers=headers)
            reply = self._connection.getresponse()
            with suppress(ValueError):
                told_s = parsedate_to_datetime(reply.getheader("Date", "")).timestamp()
                self.ahead_s = time.time() - told_s
            return reply.status, reply.read().decode()
        except BaseException:
            self._connection.close()
            raise


def parse_interruption(text: str, ahead_s: float = 0.0) -> Notice | None:
    """A notice from `spot/instance-action`; None where the instance is not going to end (or on nonsense).

    Its deadline is on our clock, which is `ahead_s` ahead of the service's.
    """
    try:
        fields = json.loads(text)
        if fields["action"] not in ("terminate", "stop", "hibernate"):
            return None
        return Notice(NoticeKind.INTERRUPTION, datetime.fromisoformat(fields["time"]).timestamp() + ahead_s)
    except (ValueError, KeyError, TypeError):
        return None


class NoticeWatch(threading.Thread):
    """Polls every `period_s` and calls `tell` (from this thread) once for each new notice."""

    def __init__(self, url: str, period_s: float, tell: Callable[[Notice], None]) -> None:
        super().__init__(name="notices", daemon=True)
        self._client = MetadataClient(url)
        self._period_s = period_s
        self._tell = tell
        self._last: dict[NoticeKind, str] = {}
        self._ended = threading.Event()

    def stop(self) -> None:
        """End after the poll in progress."""
        self._ended.set()

    def run(self) -> None:
        """Poll until stopped. A service that does not answer is asked again: notices are best effort."""
        polls, every = 0, max(1, min(HINT_EVERY_POLLS, int(HINT_EVERY_S / self._period_s)))
        while not self._ended.is_set():
            try:
                self._look(NoticeKind.INTERRUPTION, "spot/instance-action")
                if polls % every == 0:
                    self._look(NoticeKind.REBALANCE, "events/recommendations/rebalance")
            except (OSError, http.client.HTTPException):
                pass
            polls += 1
            self._ended.wait(self._period_s)

    def _look(self, kind: NoticeKind, path: str) -> None:
        text = self._client.read(path)
        if text is None or self._last.get(kind) == text:
            return
        self._last[kind] = text
        ahead_s = self._client.ahead_s if abs(self._client.ahead_s) > _SKEW_S else 0.0
        hint = Notice(kind, None)
        notice = parse_interruption(text, ahead_s) if kind is NoticeKind.INTERRUPTION else hint
        if notice is not None:
            self._tell(notice)

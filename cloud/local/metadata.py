"""The metadata service of one local node: AWS's IMDSv2 paths and rules.

Source: the EC2 user guide, "Use the Instance Metadata Service" and "Spot Instance interruption notices". A
token comes by PUT with a time to live of 1 to 21600 s (else 400; 403 for a forwarded request); a GET
without a valid token is 401; what does not exist (no interruption announced) is 404. One deviation: times
carry milliseconds, because a trace that runs 60 times faster leaves notices of a second or two.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from datetime import UTC, datetime
from email.utils import formatdate

_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Not Allowed",
}
_TTL_HEADER = "x-aws-ec2-metadata-token-ttl-seconds"
_TOKEN_HEADER = "x-aws-ec2-metadata-token"
_ROOT = "/latest/meta-data/"
_MAX_TTL_S = 21600
_MAX_REQUEST_BYTES = 16384


def _utc(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class MetadataService:
    """One node's endpoint on the loopback interface. Starts with `listen`, ends with `close`."""

    def __init__(self, instance_id: str, instance_type: str, zone: str) -> None:
        self.values: dict[str, str] = {
            "instance-id": instance_id,
            "instance-type": instance_type,
            "instance-life-cycle": "spot",
            "placement/availability-zone": zone,
            "local-ipv4": "127.0.0.1",
        }
        self._tokens: dict[str, float] = {}
        self._server: asyncio.Server | None = None
        self._transports: set[asyncio.BaseTransport] = set()

    async def listen(self, port: int = 0) -> None:
        """Take this port of 127.0.0.1 if it is free, or any that is."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: _Exchange(self), "127.0.0.1", port)
        except OSError:
            self._server = await loop.create_server(lambda: _Exchange(self), "127.0.0.1", 0)

    @property
    def url(self) -> str:
        """The endpoint, as AWS_EC2_METADATA_SERVICE_ENDPOINT wants it."""
        if self._server is None:
            raise RuntimeError("the metadata service does not listen yet")
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        """Drop every connection and give the port back."""
        if self._server is not None:
            self._server.close()
        for transport in list(self._transports):
            transport.abort()  # type: ignore[attr-defined]

    def interrupt(self, deadline_s: float) -> None:
        """Announce that the instance ends at `deadline_s` (Unix seconds)."""
        self.values["spot/instance-action"] = json.dumps({"action": "terminate", "time": _utc(deadline_s)})
        self.values["spot/termination-time"] = _utc(deadline_s)

    def recommend_rebalance(self, time_s: float) -> None:
        """Give the earlier, weaker hint."""
        self.values["events/recommendations/rebalance"] = json.dumps({"noticeTime": _utc(time_s)})

    def answer(self, method: str, path: str, headers: dict[str, str], now_s: float) -> tuple[int, str, str]:
        """Status, body and extra header lines for one request."""
        path = path.partition("?")[0]
        if path == "/latest/api/token":
            return self._token(method, headers, now_s)
        if method != "GET":
            return 405, "", ""
        if self._tokens.get(headers.get(_TOKEN_HEADER, ""), 0.0) < now_s:
            return 401, "", ""
        if not path.startswith(_ROOT):
            return 404, "", ""
        key = path.removeprefix(_ROOT)
        if (value := self.values.get(key.rstrip("/"))) is not None:
            return 200, value, ""
        below = {name[len(key) :].partition("/") for name in self.values if name.startswith(key)}
        if below and (key == "" or key.endswith("/")):
            return 200, "\n".join(sorted({head + slash for head, slash, _ in below})), ""
        return 404, "", ""

    def _token(self, method: str, headers: dict[str, str], now_s: float) -> tuple[int, str, str]:
        if method != "PUT":
            return 405, "", ""
        if "x-forwarded-for" in headers:
            return 403, "", ""
        ttl = headers.get(_TTL_HEADER, "")
        if not ttl.isdecimal() or not 1 <= int(ttl) <= _MAX_TTL_S:
            return 400, "", ""
        self._tokens = {token: end_s for token, end_s in self._tokens.items() if end_s >= now_s}
        token = secrets.token_urlsafe(42)
        self._tokens[token] = now_s + int(ttl)
        return 200, token, f"X-Aws-Ec2-Metadata-Token-Ttl-Seconds: {ttl}\r\n"


class _Exchange(asyncio.Protocol):
    """One kept-alive HTTP/1.1 connection: requests with small or no bodies, answered in order."""

    def __init__(self, service: MetadataService) -> None:
        self._service = service
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._service._transports.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._service._transports.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            first, *rest = self._buffer[:end].decode("latin-1").split("\r\n")
            headers = {
                name.strip().lower(): value.strip()
                for name, _, value in (line.partition(":") for line in rest)
            }
            length = headers.get("content-length", "0")
            words = first.split(" ")
            if not length.isdecimal() or len(words) != 3:
                self._reply(400, "", "Connection: close\r\n")
                self._transport.close()
                return
            if len(self._buffer) < end + 4 + int(length):
                break
            self._buffer = self._buffer[end + 4 + int(length) :]
            self._reply(*self._service.answer(words[0], words[1], headers, time.time()))
            if headers.get("connection", "").lower() == "close":
                self._transport.close()
                return
        if len(self._buffer) > _MAX_REQUEST_BYTES:
            self._transport.abort()

    def _reply(self, status: int, body: str, extra: str) -> None:
        reason = _REASONS[status]
        kind = "text/plain"
        if status != 200:
            kind = "text/html"
            body = f"<html><head><title>{status} - {reason}</title></head></html>"
        payload = body.encode()
        head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {len(payload)}\r\n"
        head += f"Date: {formatdate(usegmt=True)}\r\n"
        self._transport.write(f"{head}{extra}\r\n".encode("latin-1") + payload)

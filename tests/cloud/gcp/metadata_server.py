"""Google's metadata server for one machine: flavour checked both ways, ETags, and requests that wait."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
import urllib.parse

from tests.cloud.loopback import Quiet, listening


class GceMetadata:
    """An endpoint on 127.0.0.1. Values change with `set`; whoever waits for one is answered then."""

    def __init__(self, values: dict[str, str] | None = None) -> None:
        self.values = {"instance/preempted": "FALSE", "instance/maintenance-event": "NONE", **(values or {})}
        self.changed = threading.Condition()
        self.requests: list[str] = []
        self._closed = False
        metadata = self

        class Handler(Quiet):
            def do_GET(self) -> None:
                metadata._answer(self)

        self._server = listening(Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.host}"

    def set(self, path: str, value: str) -> None:
        """Change a value."""
        with self.changed:
            self.values[path] = value
            self.changed.notify_all()

    def preempt(self, deadline_s: float) -> None:
        """The machine is preempted; its words name no time."""
        self.set("instance/preempted", "TRUE")

    def forget(self) -> None:
        """What comes back at this address is another machine."""
        self.set("instance/preempted", "FALSE")

    def close(self) -> None:
        """Stop answering; who waits is answered now."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        self.requests.append(handler.path)
        parts = urllib.parse.urlsplit(handler.path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        path = parts.path.removeprefix("/computeMetadata/v1/").rstrip("/")
        status, text = 200, ""
        if handler.headers.get("Metadata-Flavor") != "Google" or "X-Forwarded-For" in handler.headers:
            status = 403
        elif not parts.path.startswith("/computeMetadata/v1/") or path not in self.values:
            status = 404
        else:
            with self.changed:
                if query.get("wait_for_change") == "true":
                    known = query.get("last_etag") or etag(self.values[path])
                    self.changed.wait_for(
                        lambda: self._closed or etag(self.values[path]) != known,
                        float(query.get("timeout_sec", "3600")),
                    )
                text = self.values[path]
        body = text.encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/text")
        handler.send_header("Content-Length", str(len(body)))
        if status == 200:
            handler.send_header("ETag", etag(text))
        handler.send_header("Metadata-Flavor", "Google")
        with contextlib.suppress(ConnectionError):  # who had asked has died meanwhile
            handler.end_headers()
            handler.wfile.write(body)


def etag(value: str) -> str:
    """What tells values apart."""
    return hashlib.sha256(value.encode()).hexdigest()[:16]

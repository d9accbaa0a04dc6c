"""HTTP servers for stand-ins, on this machine alone."""

from __future__ import annotations

import http.server
import threading
from typing import Any


class Quiet(http.server.BaseHTTPRequestHandler):
    """Keeps connections, and writes no log."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """See `BaseHTTPRequestHandler`."""


def listening(handler: type[Quiet]) -> http.server.ThreadingHTTPServer:
    """A server on 127.0.0.1 that answers in threads, until it is shut down."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server

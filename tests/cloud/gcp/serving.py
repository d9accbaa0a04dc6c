"""The stand-in for Compute Engine, listening."""

from __future__ import annotations

import json

from tests.cloud.gcp.fake_compute import FakeCompute
from tests.cloud.loopback import Quiet, listening


class Served:
    """A fake that listens on 127.0.0.1. `url` is the endpoint for clients."""

    def __init__(self, fake: FakeCompute) -> None:
        class Handler(Quiet):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                status, answer = fake.handle(self.command, self.path, self.rfile.read(length))
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_DELETE = do_GET

        self._server = listening(Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        fake.base = f"{self.url}/compute/v1/"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

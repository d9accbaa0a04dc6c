"""The front as a server, and a fresh account for each test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cloud.aws.front import ACCOUNT, Front
from tests.cloud.aws.services import Services


@contextmanager
def served(front: Front) -> Iterator[str]:
    """Listen on a free port of 127.0.0.1; the endpoint's address."""
    from moto.moto_server.werkzeug_app import MotoRequestHandler
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, front, True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(5)


def reset() -> None:
    """Forget everything in moto's account."""
    from moto.ec2 import ec2_backends

    for region in ec2_backends[ACCOUNT].values():
        region.reset()
    Services(ACCOUNT).reset()

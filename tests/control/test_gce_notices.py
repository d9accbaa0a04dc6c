"""The agent's way to learn of a preemption on Google's cloud."""

from __future__ import annotations

import http.server
import queue
import threading
import time

import pytest

from cloud.types import Notice, NoticeKind
from runtime.control.node.gce_notices import (
    GceMetadataClient,
    GceNoticeWatch,
    parse_maintenance,
    parse_preempted,
)
from tests.cloud.gcp.metadata_server import GceMetadata


def test_a_preemption_is_told_at_once_and_once() -> None:
    """The watch waits in a held request: no polling, and the deadline is the notice's length away."""
    metadata = GceMetadata()
    told: queue.Queue[Notice] = queue.Queue()
    watch = GceNoticeWatch(metadata.url, 30.0, 0.05, told.put)
    watch.start()
    try:
        deadline_s = time.monotonic() + 5
        while sum("wait_for_change" in path for path in metadata.requests) < 2:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        metadata.set("instance/maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
        assert told.get(timeout=5) == Notice(NoticeKind.REBALANCE, None)
        changed_s = time.time()
        metadata.set("instance/preempted", "TRUE")
        notice = told.get(timeout=5)
        assert notice.kind is NoticeKind.INTERRUPTION
        assert notice.deadline_s == pytest.approx(changed_s + 30, abs=1.0)
        with pytest.raises(queue.Empty):
            told.get(timeout=0.2)
        assert len(metadata.requests) < 12
    finally:
        watch.stop()
        metadata.close()


def test_an_answer_without_the_flavour_is_not_believed() -> None:
    """Some other web server (a captive portal, a proxy) must not make us leave a machine."""

    class Portal(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"TRUE")

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Portal) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        client = GceMetadataClient(f"http://127.0.0.1:{server.server_address[1]}")
        assert client.wait("instance/preempted") is None
        server.shutdown()


def test_values_that_mean_nothing_are_no_notices() -> None:
    """FALSE, NONE and what nobody knows."""
    assert parse_preempted("FALSE", 0.0, 30.0) is None
    assert parse_maintenance("NONE") is None
    assert parse_maintenance("SOMETHING_NEW") is None

"""The agent's way to learn of a preemption on Google's cloud."""

from __future__ import annotations

import http.server
import os
import queue
import subprocess
import threading
import time
from pathlib import Path

import pytest

from cloud.hosts.inventory import Host
from cloud.types import Notice, NoticeKind, OwnSshTarget
from parcae_cli import agent
from runtime.control.node import daemon
from runtime.control.node.agent import AgentOptions
from runtime.control.node.gce_notices import (
    GceMetadataClient,
    GceNoticeWatch,
    parse_maintenance,
    parse_preempted,
)
from runtime.control.providers.hosts import start_words
from runtime.control.training.roster import Roster
from tests.cloud.gcp.metadata_server import GceMetadata
from tests.control.test_roster import HELLO


@pytest.mark.parametrize("notice_s", [30.0, 120.0])
def test_a_preemption_is_told_at_once_and_once(notice_s: float) -> None:
    """The watch waits in a held request: no polling, and the deadline is the notice's length away.

    Of a longer notice the node's work has all but the lead, which is what a change needs.
    """
    metadata = GceMetadata()
    told: queue.Queue[Notice] = queue.Queue()
    watch = GceNoticeWatch(metadata.url, notice_s, 0.05, told.put)
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
        assert notice.deadline_s == pytest.approx(changed_s + notice_s, abs=1.0)
        roster = Roster()
        roster.join("n", HELLO)
        roster.make_ready("n")
        roster.notice("n", notice.deadline_s)
        assert roster.due(changed_s + notice_s - 13, 12.0) == []
        assert roster.due(changed_s + notice_s - 10, 12.0) == ["n"]
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


def test_a_host_is_told_how_long_before_the_end_its_notices_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's `notice_s` is in the agent's environment, and the agent reads it there."""
    host = Host("a", OwnSshTarget("a"), "printenv", metadata="http://x", metadata_flavor="gcp", notice_s=120)
    words = start_words(host, "job", None)
    environment = {**os.environ, "HOME": str(tmp_path), "SSH_CONNECTION": "1 2 3 4"}
    command = f"{words} PARCAE_NOTICE_S PARCAE_METADATA_FLAVOR"
    said = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["120", "gcp"]
    seen: list[AgentOptions] = []
    monkeypatch.setattr(daemon, "start_daemon", lambda options, adopt, told: seen.append(options) or 0)
    monkeypatch.setenv("PARCAE_NOTICE_S", "120")
    agent.main(["--daemon"])
    assert seen[0].notice_s == 120.0

"""The agent by itself: its lease, its controllers, its language."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud.local.metadata import MetadataService
from cloud.processes import Register, start_ticks
from runtime.control.fleet.link import Link
from runtime.control.fleet.node_notices import NodeNotices
from runtime.control.node.priority import TRAINING
from tests.cloud.gcp.metadata_server import GceMetadata
from tests.control.fleets import STUB, wait_for


class Controller:
    """A controller on the agent's own socket, without SSH."""

    def __init__(self, path: str, name: str, link: Link | None = None) -> None:
        self.link = link or Link()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10.0)
        self._socket.connect(path)
        self._lines = self._socket.makefile("rb")
        self.write(json.dumps({"controller": name, "agent": "", "have": self.link.received}).encode() + b"\n")
        self.greeting = json.loads(self._lines.readline())
        self.write(self.link.unseen(self.greeting["have"]))

    def write(self, data: bytes) -> None:
        """Raw bytes."""
        self._socket.sendall(data)

    def send(self, kind: bytes, message: dict[str, Any]) -> None:
        """One numbered line."""
        self.write(self.link.frame(kind, json.dumps(message).encode()))

    def next(self) -> tuple[bytes, dict[str, Any]]:
        """The next line that is not a heartbeat."""
        while line := self._lines.readline():
            if (frame := self.link.accept(line.rstrip(b"\n"))) is not None:
                return frame[0], json.loads(frame[1])
        raise EOFError

    def cut(self) -> None:
        """Close without a word."""
        self._lines.close()
        self._socket.close()


def start(folder: Path, lease_s: float, **environment: str) -> dict[str, Any]:
    """Start an agent in `folder`; what it says about itself."""
    command = [sys.executable, "-P", "-m", "parcae_cli.agent", "--daemon", "--lease-s", str(lease_s)]
    done = subprocess.run(
        [*command, "--mute-s", "0.6"],
        cwd=folder,
        env={**os.environ, **STUB, **environment},
        capture_output=True,
        text=True,
        timeout=15,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A work folder whose processes are ended afterwards."""
    yield tmp_path
    Register(tmp_path / "pgids").kill()


def test_an_agent_is_forked_where_one_process_has_loaded_everything(folder: Path) -> None:
    """It is as one that was started; so is the worker; and where that process has gone, it is started."""
    where = {"PARCAE_AGENT_ZYGOTE": str(folder / "zygote"), "PARCAE_ZYGOTE": str(folder / "zygote")}
    command = [sys.executable, "-P", "-m", "parcae_cli.zygote", "--socket", "zygote", "--lifeline-fd", "0"]
    with subprocess.Popen(
        command, cwd=folder, env={**os.environ, **STUB}, stdin=subprocess.PIPE, start_new_session=True
    ) as zygote:
        wait_for((folder / "zygote").exists, 10.0, "the zygote")
        agent = start(folder, 20.0, **where)
        kind, hello = Controller(agent["socket"], "one").next()
        assert kind == b"h1"
        for pid in (agent["pid"], hello["pid"]):
            assert b"parcae_cli.zygote" in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert Path(f"/proc/{pid}/stat").read_text().split()[3] == str(zygote.pid), "it is forked once"
        niceness = {pid: os.getpriority(os.PRIO_PROCESS, pid) for pid in (agent["pid"], hello["pid"])}
        assert niceness[hello["pid"]] - niceness[agent["pid"]] == TRAINING
        with pytest.raises(AssertionError, match="the agent did not start; see "):
            start(folder, 20.0, **where, PARCAE_LOG=str(folder))
        assert start_ticks(agent["pid"]) is None, "it was ended for the one that could not start"
        agent = start(folder, 20.0, **where)
        assert zygote.stdin is not None
        zygote.stdin.close()
    successor = start(folder, 20.0, **where)
    assert b"parcae_cli.agent" in Path(f"/proc/{successor['pid']}/cmdline").read_bytes()
    assert start_ticks(agent["pid"]) is None, "the one before it was ended"


def test_the_lease_is_renewed_by_hearing_and_runs_out_in_silence(folder: Path) -> None:
    """An agent that hears its controller stays; in silence it ends its worker and leaves."""
    agent = start(folder, 0.8)
    controller = Controller(agent["socket"], "one")
    kind, hello = controller.next()
    assert kind == b"h1"
    for _ in range(6):
        time.sleep(0.2)
        controller.write(controller.link.beat())
    assert start_ticks(agent["pid"]) is not None
    wait_for(lambda: start_ticks(agent["pid"]) is None, 2.0, "the agent's leave")
    wait_for(lambda: start_ticks(hello["pid"]) is None, 2.0, "the worker's end")
    assert not Path(agent["socket"]).exists()


def test_another_controller_gets_a_fresh_worker(folder: Path) -> None:
    """The same controller finds everything as it was; another one starts from nothing."""
    agent = start(folder, 20.0)
    first = Controller(agent["socket"], "one")
    _, hello = first.next()
    first.cut()
    again = Controller(agent["socket"], "one", first.link)
    again.send(b"w1", {"t": "echo", "n": 1})
    assert again.next() == (b"w1", {"t": "echo", "n": 1})
    other = Controller(agent["socket"], "two")
    kind, fresh = other.next()
    assert kind == b"h2"
    assert fresh["pid"] != hello["pid"]
    wait_for(lambda: start_ticks(hello["pid"]) is None, 2.0, "the old worker's end")
    other.send(b"w1", {"t": "echo", "n": 2})  # for an incarnation that is no more
    other.send(b"w2", {"t": "echo", "n": 3})
    assert other.next() == (b"w2", {"t": "echo", "n": 3})
    with pytest.raises((EOFError, OSError)):
        again.next()


def test_nonsense_ends_the_connection_and_nothing_else(folder: Path) -> None:
    """Who does not speak the language is dropped; the agent and its worker go on."""
    agent = start(folder, 20.0)
    first = Controller(agent["socket"], "one")
    _, hello = first.next()
    for nonsense in (b"hello\n", b"[1]\n", b"{}\n"):
        stranger = socket.socket(socket.AF_UNIX)
        stranger.settimeout(5.0)
        stranger.connect(agent["socket"])
        stranger.sendall(nonsense)
        assert stranger.recv(100) == b""
        stranger.close()
    again = Controller(agent["socket"], "one", first.link)
    again.write(b"9999 0 w1 {}\n")
    with pytest.raises(EOFError):
        again.next()
    last = Controller(agent["socket"], "one", first.link)
    last.send(b"w1", {"t": "echo"})
    assert last.next() == (b"w1", {"t": "echo"})
    assert start_ticks(hello["pid"]) is not None


def test_a_second_agent_ends_the_first_and_its_worker(folder: Path) -> None:
    """Starting an agent fences what an earlier one left in the folder, stopped processes included."""
    agent = start(folder, 20.0)
    first = Controller(agent["socket"], "one")
    _, hello = first.next()
    os.kill(hello["pid"], signal.SIGSTOP)
    os.kill(agent["pid"], signal.SIGSTOP)
    second = start(folder, 20.0)
    wait_for(lambda: start_ticks(agent["pid"]) is None, 1.0, "the old agent's end")
    wait_for(lambda: start_ticks(hello["pid"]) is None, 1.0, "the old worker's end")
    assert Controller(second["socket"], "one").next()[0] == b"h1"


def test_a_flood_of_messages_passes_through_a_busy_worker(folder: Path) -> None:
    """More than the sockets' buffers hold, both ways: kept, in order, and nothing blocks the agent."""
    agent = start(folder, 20.0)
    controller = Controller(agent["socket"], "one")
    controller.next()
    text = "x" * 50_000
    for number in range(100):
        controller.send(b"w1", {"t": "echo", "n": number, "text": text})
    for number in range(100):
        assert controller.next()[1]["n"] == number


def test_agents_and_workers_start_light() -> None:
    """Nothing heavy is imported by the entry points: a node has an agent in milliseconds."""
    heavy = {"asyncio", "asyncssh", "cryptography", "numpy", "rich", "torch", "typer", "runtime.engine"}
    script = (
        "import parcae_cli.agent, parcae_cli.worker, parcae_cli.zygote, runtime.control.node.daemon, sys;"
        f"print([name for name in {sorted(heavy)} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=15, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("flavor", ["aws", "gcp"])
def test_a_wrong_clock_on_a_node_shifts_no_deadline(folder: Path, tmp_path: Path, flavor: str) -> None:
    """The node's clock is an hour ahead: on ours the deadline is where the cloud has set it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import time\nnow_s = time.time\ntime.time = lambda: now_s() + 3600.0\n"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}", "PARCAE_METADATA_FLAVOR": flavor}
    noticed_s: list[float] = []

    async def scene(url: str, announce: Callable[[], None]) -> None:
        agent = start(folder, 5.0, PARCAE_METADATA=url, PARCAE_NOTICE_S="30", **environment)
        controller = await asyncio.to_thread(Controller, agent["socket"], "one")
        assert controller.greeting["now_s"] == pytest.approx(time.time() + 3600, abs=5)
        notices = NodeNotices()
        notices.greeted(controller.greeting["now_s"])
        noticed_s.append(time.time())
        announce()
        while (words := (await asyncio.to_thread(controller.next))[1]).get("t") != "notice":
            pass
        notice = notices.told(words)
        assert notice is not None
        assert notice.deadline_s == pytest.approx(noticed_s[0] + 30, abs=5)
        assert notices.told(words) is None, "told again, it is no news"
        assert not notices.told_by_api(notice)
        assert notices.late_s(time.time()) == pytest.approx(-30, abs=5)
        controller.cut()

    async def on_aws() -> None:
        service = MetadataService("i-1", "process", "local-a")
        await service.listen()
        await scene(service.url, lambda: service.interrupt(time.time() + 30))
        service.close()

    if flavor == "aws":
        asyncio.run(on_aws())
    else:
        metadata = GceMetadata()
        asyncio.run(scene(metadata.url, lambda: metadata.set("instance/preempted", "TRUE")))
        metadata.close()

"""What holds for one cloud holds for all: one story, told on this machine, on hosts, at EC2 and at Google."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from cloud.gcp.settings import GcpSettings
from cloud.local.metadata import MetadataService
from cloud.settings import FleetSettings
from parcae_cli.catalogue import load_fleet
from parcae_cli.clouds import RENTED
from runtime.control.job.journal import Journal
from runtime.control.job.launch import resume
from tests.cloud.aws.conftest import ec2, endpoint  # noqa: F401
from tests.cloud.gcp.conftest import compute  # noqa: F401
from tests.cloud.gcp.fake_compute import MACHINE_TYPE
from tests.cloud.gcp.metadata_server import GceMetadata
from tests.end_to_end.brake import LONGEST_HOLD_S, Brake
from tests.end_to_end.gcp_machines import GcpMachines
from tests.end_to_end.harness import Finished, lines, processes_of, train
from tests.end_to_end.machines import Machines, zygote
from tests.end_to_end.sshd import rack

pytestmark = pytest.mark.timeout(240)  # workers load torch several times over
STEPS, NODES, FIRST_STEP = 40, 3, 5
TIMES = {
    "retry_s": 0.2, "grace_s": 3, "describe_s": 0.3, "notice_poll_s": 0.2, "cool_down_s": 1, "boot_s": 60,
    "lease_s": 20, "close_s": 10,
}  # fmt: skip


class Cloud(Protocol):
    """A cloud under test: how a job gets there, and what can be done to its machines."""

    options: dict[str, Any]

    def notice(self, provider: Any, name: str, left_s: float) -> None:
        """Warn about a machine, and take it `left_s` later."""

    def vanish(self, provider: Any, name: str) -> None:
        """Take a machine without a word. In its place another may come."""

    def workers(self, provider: Any, name: str) -> list[int]:
        """The workers that a machine has had."""

    def left(self) -> list[str]:
        """What still costs money."""


class Local:
    """This machine."""

    options: dict[str, Any] = {"trace": "".join(f"0,add,n{k}\n" for k in range(6)), "speed": 60}  # noqa: RUF012

    def notice(self, provider: Any, name: str, left_s: float) -> None:
        provider.announce(name, left_s)

    def vanish(self, provider: Any, name: str) -> None:
        provider.kill(name)

    def workers(self, provider: Any, name: str) -> list[int]:
        return [record.pid for record in provider.node(name).register.records() if record.role == "worker"]

    def left(self) -> list[str]:
        return []


class Ec2Metadata:
    """IMDSv2 at a URL of its own."""

    def __init__(self) -> None:
        self._loop, self._service = asyncio.new_event_loop(), MetadataService("i-1", "machine", "zone")
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._service.listen(), self._loop).result(5)
        self.url = self._service.url

    def preempt(self, deadline_s: float) -> None:
        self._service.interrupt(deadline_s)

    def forget(self) -> None:
        """What comes back at this address is another machine."""
        self._service.values.pop("spot/instance-action", None)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._service.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


class Hosts:
    """OpenSSH servers, each with a metadata service; the first, which is warned, has AWS's.

    A host that went away comes back at once.
    """

    def __init__(self, folder: Path, notice_s: float) -> None:
        self._context = rack(folder)
        self._rack = self._context.__enter__()
        self._metadata: dict[str, Any] = {}
        for name, flavor in (("alpha", "aws"), ("beta", "gcp"), ("gamma", "aws")):
            machine, metadata = self._rack.add(name), Ec2Metadata() if flavor == "aws" else GceMetadata()
            machine.more = f'metadata = "{metadata.url}"\nmetadata_flavor = "{flavor}"\n'
            machine.more += f"notice_s = {notice_s}\n" if flavor == "gcp" else ""
            self._metadata[name] = metadata
        self.options: dict[str, Any] = {"fleet": {"hosts": str(self._rack.hosts_toml())}}

    def notice(self, provider: Any, name: str, left_s: float) -> None:
        self._metadata[name].preempt(time.time() + left_s)
        timer = threading.Timer(left_s, self.vanish, [provider, name])
        timer.daemon = True
        timer.start()

    def vanish(self, provider: Any, name: str) -> None:
        machine = self._rack.machines[name]
        self._metadata[name].forget()
        machine.die()
        machine.start()

    def workers(self, provider: Any, name: str) -> list[int]:
        return self._rack.machines[name].records("worker")

    def left(self) -> list[str]:
        homes = [machine.home for machine in self._rack.machines.values()]
        return [str(path) for home in homes for path in home.glob(".cache/parcae/nodes/*")]

    def close(self) -> None:
        self._context.__exit__(None, None, None)
        for metadata in self._metadata.values():
            metadata.close()


class Rented:
    """EC2 or Compute Engine: a stand-in of the API, whose instances are local nodes."""

    def __init__(self, name: str, machines: Any, live: Callable[[], list[str]], **settings: Any) -> None:
        self._machines, self.left = machines, live
        shared = {"device": "model", "python": sys.executable, "packages": [], "times": TIMES}
        self.options: dict[str, Any] = {"fleet": {**load_fleet(name), **shared, **settings}}

    def notice(self, provider: Any, name: str, left_s: float) -> None:
        self._machines.notice(name, left_s)

    def vanish(self, provider: Any, name: str) -> None:
        self._machines.vanish(name)

    def workers(self, provider: Any, name: str) -> list[int]:
        found: list[int] = self._machines.pids(name, "worker")
        return found


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run that all others must equal: nothing happens."""
    return train(tmp_path_factory.mktemp("quiet"), "quiet", nodes=NODES, steps=STEPS)


@pytest.fixture(scope="module")
def notice_s(quiet: Finished) -> float:
    """How long a notice is in this file: many steps, however fast this machine is today. Whole seconds."""
    times = [line["time_s"] for line in quiet.metrics]
    return max(4.0, math.ceil(40 * statistics.median(b - a for a, b in itertools.pairwise(times))))


@pytest.fixture(params=["local", "hosts", "aws", "gcp"])
def cloud(request: pytest.FixtureRequest, tmp_path: Path, notice_s: float) -> Iterator[tuple[str, Cloud]]:
    """Each cloud in turn; switched off in the end."""
    name = request.param
    if name == "local":
        yield name, Local()
    elif name == "hosts":
        hosts = Hosts(tmp_path / "rack", notice_s)
        yield name, hosts
        hosts.close()
    elif name == "aws":
        front = request.getfixturevalue("ec2")
        there = Machines(front, tmp_path / "machines")
        there.zygote = zygote()
        settings = {"instance_types": ["g4dn.xlarge"], "ssh_port": there.ssh_port}
        yield name, Rented(name, there, front.live, **settings)
        assert there.close() == []
    else:
        fake = request.getfixturevalue("compute")
        machines = GcpMachines(fake, tmp_path / "machines")
        machines.zygote = zygote()
        yield name, Rented(name, machines, fake.live, machine_types=[MACHINE_TYPE])
        assert machines.close() == []


class Story:
    """One machine goes with a notice, another without, a third stays: each when the one before is over.

    While something is awaited the nodes' votes are held back on their way, so that it happens before training
    ends: each for a moment as long as a notice has to be obeyed, which takes some steps, and else until it
    has happened.
    """

    def __init__(self, where: Cloud, home: Path, notice_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self._where, self._home, self._notice_s = where, home, notice_s
        self._brake = Brake(monkeypatch, self._held_s)
        self._chapters = iter((self._warn, self._take, self._look))
        self._awaited: Callable[[], bool] = lambda: True
        self.names: list[str] = []
        self.deadline_s = 0.0
        self.workers: list[int] | None = None  # those that the third machine has had, in the end

    def __call__(self, step: int, provider: Any) -> None:
        self._brake.stepped()
        if step == FIRST_STEP and not self.names:
            self.names = sorted(one.name for one in ledger(self._home))
        if self.names and self.workers is None and self._awaited():
            next(self._chapters)(provider)

    def _held_s(self) -> float:
        if not self.names or self.workers is not None or self._awaited():
            return 0.0
        obeyed = any(event["kind"] == "migration" for event in self._events())
        return LONGEST_HOLD_S if obeyed else self._notice_s / 12

    def _warn(self, provider: Any) -> None:
        self.deadline_s = time.time() + self._notice_s
        self._where.notice(provider, self.names[0], self._notice_s)
        self._awaited = lambda: self._gone(0) and self._joined() > NODES

    def _take(self, provider: Any) -> None:
        self._where.vanish(provider, self.names[1])
        self._awaited = lambda: self._told("lost", self.names[1]) and self._joined() > NODES + 1

    def _look(self, provider: Any) -> None:
        self.workers = self._where.workers(provider, self.names[2])

    def _gone(self, number: int) -> bool:
        """It is time, and the job has heard of it, or a host has come back under its name."""
        return time.time() > self.deadline_s + 0.5 and self._told("lost", self.names[number])

    def _told(self, kind: str, name: str) -> bool:
        return any(event["kind"] == kind and event["text"].startswith(name) for event in self._events())

    def _joined(self) -> int:
        return sum(event["kind"] == "joined" for event in self._events())

    def _events(self) -> list[dict[str, Any]]:
        return lines(self._home / "jobs/story/events.jsonl")


def test_a_job_lives_through_a_notice_and_a_loss(
    quiet: Finished,
    cloud: tuple[str, Cloud],
    notice_s: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One machine goes with a notice and one without, others come, one stays and keeps its worker.

    The losses and the weights are those of a run that nothing happened to, the notice was obeyed before its
    deadline, and at the end nothing is left: no process, nothing that costs money, no open question in the
    journal.
    """
    name, where = cloud
    story = Story(where, tmp_path, notice_s, monkeypatch)
    options = {"nodes": NODES, "steps": STEPS, **where.options}
    if name == "gcp":  # which gives 30 s at least, and a node there counts from when it hears of it
        monkeypatch.setattr(GcpSettings, "__post_init__", FleetSettings.__post_init__)
        options["fleet"] = {**options["fleet"], "notice_s": int(notice_s)}
    run = train(tmp_path, "story", story, cloud=name, **options)
    assert run.result.state == "done", run.result.why
    assert (run.result.samples_lost, run.result.samples_repeated) == (0, 0)
    assert run.losses == quiet.losses
    assert run.result.weights_sha256 == quiet.result.weights_sha256
    assert story.workers is not None, "the story was not over when training was"
    assert len(story.workers) == 1, "the machine that stayed has had one worker only"
    (notice,) = [event for event in run.events if event["kind"] == "notice"]
    assert notice["text"].startswith(story.names[0])
    moved = next(event for event in run.events if event["kind"] == "migration")
    lost = next(event for event in run.events if event["kind"] == "lost")
    assert "prepared" in moved["text"], "the notice was not obeyed in time"
    assert lost["text"].startswith(story.names[0])
    assert notice["time_s"] < moved["time_s"] < min(lost["time_s"], story.deadline_s)
    market = [event["text"] for event in run.events if event["kind"] == "market"]
    assert bool(market) == (name in RENTED)
    if name == "gcp":  # the advice service's rates are what the planner's forecaster begins with
        assert "0.00214 losses and 0.00214 gains an instance hour, worth 4 h of watching" in market
    assert where.left() == []
    journal = Journal(tmp_path)
    assert journal.open_intents("story") == []
    assert journal.instances("story", live_only=True) == []
    journal.close()
    assert processes_of(tmp_path / "jobs") == []


@pytest.mark.parametrize("cloud", ["hosts", "aws", "gcp"], indirect=True)
def test_a_job_outlives_its_launcher(quiet: Finished, cloud: tuple[str, Cloud], tmp_path: Path) -> None:
    """kill -9 between a step's decision and its word: a resumed launcher keeps machines and workers.

    The weights are those of a quiet run, nothing was rented beside what was there, and nothing is left.
    """
    name, where = cloud
    options = {"cloud": name, "nodes": NODES, "steps": STEPS, **where.options}
    launcher = [sys.executable, "-m", "tests.end_to_end.killed_launcher", str(tmp_path), "a step is decided"]
    done = subprocess.run([*launcher, "12", json.dumps(options)], capture_output=True, text=True, timeout=90)
    assert done.returncode == -9, done.stderr
    held = ledger(tmp_path, "cut")
    result = resume(tmp_path, "cut")
    assert result.state == "done", result.why
    folder = tmp_path / "jobs/cut"
    assert [row["loss"] for row in lines(folder / "metrics.jsonl")] == quiet.losses
    assert result.weights_sha256 == quiet.result.weights_sha256
    (resumed,) = [event for event in lines(folder / "events.jsonl") if event["kind"] == "resumed"]
    assert (resumed["text"], resumed["why"]) == ("at step 13", f"{NODES} workers were found again")
    journal = Journal(tmp_path)
    assert {row.instance.id for row in journal.instances("cut")} == {one.id for one in held}
    assert journal.open_intents("cut") == []
    journal.close()
    assert where.left() == []


def ledger(home: Path, job: str = "story") -> list[Any]:
    """The instances that the job holds, as its journal knows them."""
    journal = Journal(home)
    rows = journal.instances(job, live_only=True)
    journal.close()
    return [row.instance for row in rows]

"""A fleet that nothing bad happens to: renting, talking, notices, capacity, the end."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import time
from pathlib import Path

import pytest

from cloud.local.schedule import Schedule
from cloud.processes import is_alive
from cloud.types import Instance, InstanceState, NoticeKind
from runtime.control.fleet.fleet import (
    InstanceChanged,
    LinkTimes,
    NodeNoticed,
    WorkerFailed,
    WorkerJoined,
    WorkerLost,
    WorkerMessage,
)
from tests.control.fleets import local_fleet, recorded

CHANGING = Schedule.of(
    [
        (0, "add", "alder"),
        (0, "add", "birch"),
        (0, "add", "cedar"),
        (60, "remove", "birch"),
        (90, "add", "maple"),
        (90, "kill", "alder"),
    ]
)


class Notes:
    """A journal that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[object, ...]] = []

    def intent(self, token: str, job: str, call: str, count: int) -> None:
        self.lines.append(("intent", token, job, call, count))

    def outcome(self, token: str, text: str) -> None:
        self.lines.append(("outcome", token, text))

    def put_instance(self, job: str, instance: Instance, pgids: object) -> None:
        self.lines.append(("instance", instance.name, instance.state, tuple(pgids)))  # type: ignore[call-overload]


def test_workers_join_and_messages_keep_their_order(tmp_path: Path) -> None:
    """Every node's worker joins, answers, and its lines arrive complete and in order."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 3) as fleet:
            assert sorted(await fleet.joined(3)) == ["node1", "node2", "node3"]
            for name in ("node1", "node2", "node3"):
                fleet.fleet.send(name, {"t": "many", "count": 500})
            numbers: dict[str, list[int]] = {}
            while sum(map(len, numbers.values())) < 1500:
                event = await fleet.until(WorkerMessage)
                numbers.setdefault(event.node, []).append(event.message["number"])
            assert all(got == list(range(500)) for got in numbers.values())
            fleet.fleet.send("nobody", {"t": "echo"})
            await fleet.echo("node2", "x" * 300_000)

    asyncio.run(scene())


def test_a_worker_without_a_zygote_is_started_by_its_agent(tmp_path: Path) -> None:
    """Where there is no zygote the agent starts the worker itself, and restarts it when it has ended."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 1, zygote=False) as fleet:
            await fleet.joined(1)
            first = fleet.pids["node1"]
            fleet.fleet.send("node1", {"t": "exit", "code": 3})
            await fleet.until(WorkerLost, "node1")
            await fleet.until(WorkerJoined, "node1")
            assert fleet.pids["node1"] != first

    asyncio.run(scene())


@pytest.mark.parametrize("zygote", [True, False])
def test_what_a_worker_sees_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zygote: bool
) -> None:
    """Workers get what they need, none of the user's secrets, a log of their own and a private folder."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")

    async def scene() -> None:
        async with local_fleet(tmp_path, 1, zygote=zygote) as fleet:
            hello = (await fleet.until(WorkerJoined)).hello
            assert hello["env"]["RES_OPTIONS"] == "timeout:1 attempts:1"
            assert hello["env"]["OMP_NUM_THREADS"] == "1"
            assert hello["env"]["PARCAE_NODE"] == "node1"
            folder = fleet.provider.node("node1").folder
            assert hello["env"]["HOME"] == str(folder)
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            fleet.fleet.send("node1", {"t": "secrets"})
            names = (await fleet.until(WorkerMessage)).message["names"]
            assert not {"AWS_SECRET_ACCESS_KEY", "HF_TOKEN"} & set(names)
            assert "stub worker up" in (tmp_path / "logs" / "node1.log").read_text()
            assert os.getpgid(hello["pid"]) == hello["pid"]

    asyncio.run(scene())


def test_a_notice_travels_through_the_metadata_service_and_comes_true(tmp_path: Path) -> None:
    """A removal is seen by the agent before the deadline; then the node dies; it has been replaced."""

    async def scene() -> None:
        async with local_fleet(tmp_path, CHANGING, 2, speed=60.0, notice_s=60.0) as fleet:
            assert sorted(await fleet.joined(2)) == ["alder", "birch"]
            assert not [event for event in fleet.seen if isinstance(event, NodeNoticed)]
            fleet.provider.start_clock()
            started_s = time.time()
            notice = (await fleet.until(NodeNoticed)).notice
            assert notice.kind is NoticeKind.INTERRUPTION
            assert notice.deadline_s is not None
            assert 0.5 < notice.deadline_s - time.time() < 1.01
            assert notice.deadline_s - started_s == pytest.approx(2.0, abs=0.2)
            ended: dict[str, float] = {}
            while len(ended) < 2:
                change = (await fleet.until(InstanceChanged)).instance
                if change.state is InstanceState.TERMINATED:
                    ended[change.name] = time.time()
            # alder went without a word at its time, birch at its deadline; each has been lost first, and once
            assert ended["alder"] - started_s == pytest.approx(1.5, abs=0.3)
            assert ended["birch"] == pytest.approx(notice.deadline_s, abs=0.3)
            losses = [event.node for event in fleet.seen if isinstance(event, WorkerLost)]
            assert losses == ["alder", "birch"]
            # the replacement of birch was rented while birch still worked
            order = [event.instance.name for event in fleet.seen if isinstance(event, InstanceChanged)]
            assert order.index("cedar") < len(order) - 1 - order[::-1].index("birch")
            while "maple" not in fleet.pids:
                await fleet.until(WorkerJoined)
            assert fleet.pids.keys() == {"alder", "birch", "cedar", "maple"}
            states = {instance.name: instance.state for instance in fleet.fleet.instances()}
            gone, runs = InstanceState.TERMINATED, InstanceState.RUNNING
            assert states == {"alder": gone, "birch": gone, "cedar": runs, "maple": runs}
            changes = [event.instance for event in fleet.seen if isinstance(event, InstanceChanged)]
            path = [instance.state for instance in changes if instance.name == "birch"]
            assert path == [runs, InstanceState.NOTICED, gone]

    asyncio.run(scene())


def test_a_rebalance_hint_is_passed_on_once_and_changes_nothing(tmp_path: Path) -> None:
    """The weaker hint has no deadline; the instance still counts, also after its agent was started anew."""

    async def scene() -> None:
        async with local_fleet(tmp_path, Schedule.constant(2), 1) as fleet:
            await fleet.joined(1)
            fleet.provider.node("node1").metadata.recommend_rebalance(time.time())
            notice = (await fleet.until(NodeNoticed, "node1")).notice
            assert (notice.kind, notice.deadline_s) == (NoticeKind.REBALANCE, None)
            os.kill(fleet.agent_pid("node1"), signal.SIGKILL)
            await fleet.until(WorkerJoined, "node1")
            await asyncio.sleep(0.3)  # the new agent polls meanwhile
            await fleet.echo("node1", "still")
            assert sum(isinstance(event, NodeNoticed) for event in fleet.seen) == 1
            assert [instance.state for instance in fleet.fleet.instances()] == [InstanceState.RUNNING]

    asyncio.run(scene())


def test_without_its_zygote_a_fleet_goes_on(tmp_path: Path) -> None:
    """If the zygote dies, living workers do not notice, and new ones are started by their agents."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 1) as fleet:
            await fleet.joined(1)
            (zygote,) = (record for record in recorded(tmp_path) if record.role == "zygote")
            os.kill(zygote.pid, signal.SIGKILL)
            await fleet.echo("node1", "still")
            os.kill(fleet.pids["node1"], signal.SIGKILL)
            await fleet.until(WorkerJoined, "node1")
            await fleet.echo("node1", "anew")

    asyncio.run(scene())


def test_without_notice_a_removal_is_a_kill(tmp_path: Path) -> None:
    """With a notice of 0 s the node is simply gone, at the removal's own time."""

    async def scene() -> None:
        async with local_fleet(tmp_path, CHANGING, 3, speed=600.0, notice_s=0.0) as fleet:
            await fleet.joined(3)
            fleet.provider.start_clock()
            started_s = time.time()
            assert (await fleet.until(WorkerLost)).node == "birch"
            assert time.time() - started_s == pytest.approx(0.1, abs=0.1)
            assert not [event for event in fleet.seen if isinstance(event, NodeNoticed)]

    asyncio.run(scene())


def test_never_more_than_wanted_and_only_what_the_trace_has(tmp_path: Path) -> None:
    """The fleet holds as many as wanted, the first of the trace; for more it waits."""

    async def scene() -> None:
        async with local_fleet(tmp_path / "few", 5, 2) as fleet:
            assert sorted(await fleet.joined(2)) == ["node1", "node2"]
            await fleet.echo("node1", "still")
            assert len(fleet.fleet.instances()) == 2
        rows = [(0.0, "add", "only"), (10.0, "add", "late")]
        async with local_fleet(tmp_path / "late", Schedule.of(rows), 4, speed=100.0) as fleet:
            assert await fleet.joined(1) == ["only"]
            fleet.provider.start_clock()
            assert await fleet.joined(1) == ["late"]

    asyncio.run(scene())


def test_intent_is_written_before_the_call_and_instances_as_they_change(tmp_path: Path) -> None:
    """The journal has every request's intent before its outcome, and every instance to its end."""
    notes = Notes()

    async def scene() -> None:
        async with local_fleet(tmp_path, 2, journal=notes) as fleet:
            await fleet.joined(2)

    asyncio.run(scene())
    first = notes.lines[0]
    assert first[0] == "intent" and first[2:] == ("job", "request", 2)
    outcome = next(at for at, line in enumerate(notes.lines) if line[0] == "outcome")
    assert notes.lines[outcome][1] == first[1]
    # what came of the call is on record before the call counts as seen to
    assert {line[1] for line in notes.lines[:outcome] if line[0] == "instance"} == {"node1", "node2"}
    ends = {line[1]: line[2] for line in notes.lines if line[0] == "instance"}
    assert ends == {"node1": InstanceState.TERMINATED, "node2": InstanceState.TERMINATED}
    assert any(
        line[0] == "instance" and len(line[3]) == 2 for line in notes.lines
    )  # agent's and worker's groups


def test_a_worker_that_cannot_start_is_reported(tmp_path: Path) -> None:
    """A worker that ends before its hello is no loss but a failure, counted, and tried again."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 1, environment={"STUB_FAILS": "1"}) as fleet:
            assert (await fleet.until(WorkerFailed)).times == 1
            assert (await fleet.until(WorkerFailed)).times == 2
            assert not [event for event in fleet.seen if isinstance(event, WorkerJoined | WorkerLost)]
            assert "told to fail" in (tmp_path / "logs" / "node1.log").read_text()

    asyncio.run(scene())


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.1, 0.2, 0.3])
def test_stopping_at_any_moment_of_the_boot_leaves_nothing(tmp_path: Path, after_s: float) -> None:
    """stop() during provisioning ends everything that had been started; twice is no error."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 4) as fleet:
            await asyncio.sleep(after_s)
            started_s = time.monotonic()
            records = recorded(tmp_path)
            await asyncio.gather(fleet.fleet.stop(), fleet.fleet.stop())
            assert time.monotonic() - started_s < 5.0
            assert [record for record in records if is_alive(record)] == []
            assert not list((tmp_path / "nodes").glob("*/pgids"))

    asyncio.run(scene())


def test_an_instance_that_outlives_its_notice_counts_again(tmp_path: Path) -> None:
    """Its replacement is one too many then, and is not replaced in its turn."""

    async def scene() -> None:
        times = LinkTimes(grace_s=1.5)
        async with local_fleet(tmp_path, Schedule.constant(3), 1, times=times) as fleet:
            await fleet.joined(1)
            fleet.provider.node("node1").metadata.interrupt(time.time() + 0.2)
            await fleet.until(NodeNoticed, "node1")
            state = {"node1": InstanceState.NOTICED}
            while state["node1"] is not InstanceState.RUNNING:
                changed = (await fleet.until(InstanceChanged)).instance
                state[changed.name] = changed.state
            if not any(isinstance(event, WorkerJoined) and event.node == "node2" for event in fleet.seen):
                await fleet.until(WorkerJoined, "node2")
            fleet.provider.kill("node2")
            await fleet.until(WorkerLost, "node2")
            await asyncio.sleep(0.5)  # some looks at the fleet
            await fleet.echo("node1", "still")
            assert fleet.provider.names() == ["node1"]

    asyncio.run(scene())

"""What a fleet makes of deaths, silences and cuts: real processes, real signals, real sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloud.local.schedule import Schedule
from cloud.local.sweep import sweep
from cloud.processes import is_alive, start_ticks
from runtime.control.fleet.fleet import LinkTimes, WorkerJoined, WorkerLost, WorkerMessage
from tests.control.fleets import PROJECT, local_fleet, recorded, wait_for

# Every fault that closes a connection is to be told at once, on however busy a machine; in any case sooner
# than silence would be noticed.
AT_ONCE_S = LinkTimes().mute_s * 0.8
# How long a fault may take to be found by silence and an end to come, on a busy machine.
FOUND_S = 10.0
IMPATIENT = LinkTimes(grace_s=1.0, mute_s=1.0, beat_s=0.2)


async def gone_within(pid: int, within_s: float) -> None:
    """Wait for a process's end."""
    await asyncio.to_thread(wait_for, lambda: start_ticks(pid) is None, within_s, f"end of process {pid}")


def test_a_killed_worker_is_told_at_once_and_replaced(tmp_path: Path) -> None:
    """SIGKILL of a worker: lost within milliseconds, another joins; the other node notices nothing."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 2) as fleet:
            await fleet.joined(2)
            first, other = fleet.pids["node1"], fleet.pids["node2"]
            started_s = time.monotonic()
            os.kill(first, signal.SIGKILL)
            await fleet.until(WorkerLost, "node1")
            assert time.monotonic() - started_s < AT_ONCE_S
            await fleet.until(WorkerJoined, "node1")
            assert fleet.pids["node1"] != first
            await fleet.echo("node1", "anew")
            await fleet.echo("node2", "still")
            assert fleet.pids["node2"] == other
            assert sum(isinstance(event, WorkerLost) for event in fleet.seen) == 1

    asyncio.run(scene())


def test_messages_of_an_old_incarnation_reach_nobody(tmp_path: Path) -> None:
    """What was sent to a worker that is being replaced never reaches its successor."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 1) as fleet:
            await fleet.joined(1)
            os.kill(fleet.pids["node1"], signal.SIGKILL)
            for number in range(20):
                fleet.fleet.send("node1", {"t": "echo", "text": f"old {number}"})
            await fleet.until(WorkerJoined, "node1")
            await fleet.echo("node1", "new")
            after = fleet.seen[next(i for i, e in enumerate(fleet.seen) if isinstance(e, WorkerLost)) :]
            texts = [event.message["text"] for event in after if isinstance(event, WorkerMessage)]
            assert texts == ["new"]

    asyncio.run(scene())


def test_a_worker_given_up_by_the_coordinator_is_killed_and_replaced(tmp_path: Path) -> None:
    """kill_worker: lost at once, the process is gone, another joins; twice is no error."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 1) as fleet:
            await fleet.joined(1)
            first = fleet.pids["node1"]
            fleet.fleet.kill_worker("node1")
            fleet.fleet.kill_worker("node1")
            fleet.fleet.kill_worker("nobody")
            await fleet.until(WorkerLost, "node1", AT_ONCE_S)
            await fleet.until(WorkerJoined, "node1")
            await gone_within(first, FOUND_S)
            assert sum(isinstance(event, WorkerLost) for event in fleet.seen) == 1

    asyncio.run(scene())


def test_a_stopped_worker_is_found_by_its_agent(tmp_path: Path) -> None:
    """A worker that hangs answers no ping: killed and replaced within the patience of its agent."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 1, times=IMPATIENT) as fleet:
            await fleet.joined(1)
            first = fleet.pids["node1"]
            started_s = time.monotonic()
            os.kill(first, signal.SIGSTOP)
            assert "not answered" in (await fleet.until(WorkerLost, "node1")).why
            assert 0.5 < time.monotonic() - started_s < FOUND_S
            await fleet.until(WorkerJoined, "node1")
            await gone_within(first, FOUND_S)

    asyncio.run(scene())


def test_a_killed_agent_takes_its_worker_along(tmp_path: Path) -> None:
    """SIGKILL of an agent: its worker is lost at once and leaves by itself; new ones start."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 1) as fleet:
            await fleet.joined(1)
            first, agent = fleet.pids["node1"], fleet.agent_pid("node1")
            started_s = time.monotonic()
            os.kill(agent, signal.SIGKILL)
            await fleet.until(WorkerLost, "node1")
            assert time.monotonic() - started_s < AT_ONCE_S
            await gone_within(first, FOUND_S)
            await fleet.until(WorkerJoined, "node1")
            assert fleet.agent_pid("node1") != agent
            await fleet.echo("node1", "anew")
            assert len(fleet.fleet.instances()) == 1

    asyncio.run(scene())


def test_a_worker_that_hangs_leaves_when_its_agent_dies(tmp_path: Path) -> None:
    """Deaf to its control connection, a worker is still gone soon after its agent."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 1) as fleet:
            await fleet.joined(1)
            first = fleet.pids["node1"]
            fleet.fleet.send("node1", {"t": "many", "count": 1})
            fleet.fleet.send("node1", {"t": "hang"})
            await fleet.until(WorkerMessage, "node1")
            os.kill(fleet.agent_pid("node1"), signal.SIGKILL)
            await fleet.until(WorkerJoined, "node1")
            await gone_within(first, FOUND_S)

    asyncio.run(scene())


@pytest.mark.parametrize("whom", ["agent", "both"])
def test_a_stopped_agent_is_fenced(tmp_path: Path, whom: str) -> None:
    """SIGSTOP of an agent (or of it and its worker): lost after the grace; both are ended, new ones join."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 1, times=IMPATIENT) as fleet:
            await fleet.joined(1)
            first, agent = fleet.pids["node1"], fleet.agent_pid("node1")
            started_s = time.monotonic()
            os.kill(agent, signal.SIGSTOP)
            if whom == "both":
                os.kill(first, signal.SIGSTOP)
            assert "silent" in (await fleet.until(WorkerLost, "node1")).why
            assert 0.5 < time.monotonic() - started_s < FOUND_S
            await fleet.until(WorkerJoined, "node1")
            await gone_within(agent, FOUND_S)
            await gone_within(first, FOUND_S)
            await fleet.echo("node1", "anew")

    asyncio.run(scene())


def test_an_agent_stopped_and_cut_off_is_fenced(tmp_path: Path) -> None:
    """A stopped agent's socket still accepts connections: what counts is its answer."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 1, times=IMPATIENT) as fleet:
            await fleet.joined(1)
            started_s = time.monotonic()
            os.kill(fleet.agent_pid("node1"), signal.SIGSTOP)
            fleet.provider.node("node1").cut()
            await fleet.until(WorkerLost, "node1")
            assert time.monotonic() - started_s < FOUND_S
            await fleet.until(WorkerJoined, "node1")
            await fleet.echo("node1", "anew")

    asyncio.run(scene())


def test_a_killed_node_is_told_at_once(tmp_path: Path) -> None:
    """A machine that vanishes: its worker is lost within milliseconds, and another machine comes."""

    async def scene() -> None:
        async with local_fleet(tmp_path, Schedule.constant(3), 2) as fleet:
            await fleet.joined(2)
            records = fleet.provider.node("node1").register.records()
            started_s = time.monotonic()
            fleet.provider.kill("node1")
            await fleet.until(WorkerLost, "node1")
            assert time.monotonic() - started_s < AT_ONCE_S
            for record in records:
                await gone_within(record.pid, FOUND_S)
            assert (await fleet.until(WorkerJoined)).node == "node3"
            assert sum(isinstance(event, WorkerLost) for event in fleet.seen) == 1

    asyncio.run(scene())


def test_a_cut_connection_loses_nothing(tmp_path: Path) -> None:
    """SSH cut again and again amid traffic: no line is lost, doubled or out of order; nobody dies."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 1) as fleet:
            await fleet.joined(1)
            first = fleet.pids["node1"]
            got: list[str] = []
            for number in range(300):
                fleet.fleet.send("node1", {"t": "echo", "text": str(number)})
                if number % 50 == 20:
                    await fleet.until(WorkerMessage)
                    got.append(fleet.seen[-1].message["text"])
                    fleet.provider.node("node1").cut()
                    fleet.fleet.send("node1", {"t": "many", "count": 0})
            while len(got) < 300:
                got.append((await fleet.until(WorkerMessage)).message["text"])
            assert got == [str(number) for number in range(300)]
            fleet.provider.node("node1").cut()
            fleet.fleet.send("node1", {"t": "exit", "code": 0})  # ordered while cut, done after
            await fleet.until(WorkerLost)
            await fleet.until(WorkerJoined)
            assert fleet.pids["node1"] != first
            kinds = [type(event) for event in fleet.seen]
            assert (kinds.count(WorkerLost), kinds.count(WorkerJoined)) == (1, 2)

    asyncio.run(scene())


def test_a_node_out_of_reach_too_long_is_given_up_and_its_worker_fenced(tmp_path: Path) -> None:
    """Cut off for longer than the grace: lost; reached again, its old worker is killed first."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 1, times=IMPATIENT) as fleet:
            await fleet.joined(1)
            first = fleet.pids["node1"]
            node = fleet.provider.node("node1")

            def cut_again() -> None:
                node.cut()
                if not lost.done():
                    asyncio.get_running_loop().call_later(0.001, cut_again)

            lost = asyncio.ensure_future(fleet.until(WorkerLost, "node1"))
            cut_again()
            assert "out of reach" in (await lost).why
            await fleet.until(WorkerJoined, "node1")
            assert fleet.pids["node1"] != first
            await gone_within(first, FOUND_S)

    asyncio.run(scene())


def test_a_slow_launcher_does_not_blame_its_nodes(tmp_path: Path) -> None:
    """When this process itself was not running, nobody is called silent for it."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 2, times=IMPATIENT) as fleet:
            await fleet.joined(2)
            for _ in range(2):
                time.sleep(1.5)  # noqa: ASYNC251 - blocking the loop is the point
                await fleet.echo("node1", "after")
            await fleet.echo("node2", "after")
            assert not [event for event in fleet.seen if isinstance(event, WorkerLost)]

    asyncio.run(scene())


def launch(root: Path, lease_s: float) -> subprocess.Popen[str]:
    """A launcher of its own, with its fleet up."""
    command = [sys.executable, "-m", "tests.control.launcher", str(root), str(lease_s)]
    launcher = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "up\n"
    return launcher


def test_everything_ends_by_itself_when_the_launcher_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the launcher: the leases run out, and no agent, worker or zygote is left."""
    launcher = launch(tmp_path, 1.0)
    records = [record for record in recorded(tmp_path) if is_alive(record)]
    assert sorted(record.role for record in records) == ["agent", "agent", "worker", "worker", "zygote"]
    launcher.kill()
    launcher.wait()
    wait_for(lambda: not any(map(is_alive, records)), FOUND_S, "the end of everything")


def test_a_sweep_ends_what_a_killed_launcher_left(tmp_path: Path) -> None:
    """SIGKILL of the launcher, then a sweep from here: all is gone; a second sweep finds nothing."""
    launcher = launch(tmp_path, 60.0)
    records = [record for record in recorded(tmp_path) if is_alive(record)]
    launcher.kill()
    launcher.wait()
    killed, doubtful = sweep(tmp_path)
    # An agent's workers end with it, so that on a busy machine the sweep may find none of them alive.
    assert "agent" in {process.role for process in killed}
    assert doubtful == ()
    assert not any(map(is_alive, records))
    assert sweep(tmp_path) == ((), ())

"""Many faults at once, in any order: the fleet comes to rest complete, and nothing is left over."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import pytest

from cloud.local.schedule import Schedule
from runtime.control.fleet.fleet import LinkTimes, WorkerJoined, WorkerLost, WorkerMessage
from tests.control.fleets import Watcher, local_fleet

NODES = 4
STORM_S = 3.0
CALM_WITHIN_S = 20.0
FAULTS = ("worker", "worker stop", "agent", "agent stop", "node", "cut", "cut", "give up")


def strike(fleet: Watcher, rng: random.Random, alive: dict[str, int]) -> None:
    """Do one harm to one node."""
    name = rng.choice(sorted(alive))
    try:
        match rng.choice(FAULTS):
            case "worker":
                os.kill(alive[name], signal.SIGKILL)
            case "worker stop":
                os.kill(alive[name], signal.SIGSTOP)
            case "agent":
                os.kill(fleet.agent_pid(name), signal.SIGKILL)
            case "agent stop":
                os.kill(fleet.agent_pid(name), signal.SIGSTOP)
            case "node":
                fleet.provider.kill(name)
            case "cut":
                fleet.provider.node(name).cut()
            case "give up":
                fleet.fleet.kill_worker(name)
    except (ProcessLookupError, KeyError, StopIteration):
        pass  # somebody was quicker


@pytest.mark.parametrize("seed", [1, 2])
def test_a_storm_of_faults_passes(tmp_path: Path, seed: int) -> None:
    """Joins and losses alternate for every node, messages come from joined workers, and all come back."""
    rng = random.Random(seed)
    alive: dict[str, int] = {}

    def follow(event: object) -> None:
        match event:
            case WorkerJoined(node, hello):
                assert node not in alive
                alive[node] = hello["pid"]
            case WorkerLost(node, _):
                del alive[node]
            case WorkerMessage(node, _):
                assert node in alive

    async def scene() -> None:
        times = LinkTimes(grace_s=0.7, mute_s=0.7, beat_s=0.15)
        async with local_fleet(tmp_path, Schedule.constant(40), NODES, times=times) as fleet:
            ends_s = time.monotonic() + STORM_S
            while time.monotonic() < ends_s:
                for name in alive:
                    fleet.fleet.send(name, {"t": "echo", "text": "in the storm"})
                if alive:
                    strike(fleet, rng, alive)
                pause_s = time.monotonic() + rng.uniform(0.0, 0.2)
                while (left_s := pause_s - time.monotonic()) > 0:
                    try:
                        follow(await asyncio.wait_for(fleet.fleet.events.get(), left_s))
                    except TimeoutError:
                        break
            answered: set[str] = set()
            async with asyncio.timeout(CALM_WITHIN_S):
                for name in alive:
                    fleet.fleet.send(name, {"t": "echo", "text": "calm"})
                while len(answered) < NODES:
                    event = await fleet.fleet.events.get()
                    follow(event)
                    if isinstance(event, WorkerJoined):
                        fleet.fleet.send(event.node, {"t": "echo", "text": "calm"})
                    if isinstance(event, WorkerLost):
                        answered.discard(event.node)
                    if isinstance(event, WorkerMessage) and event.message["text"] == "calm":
                        answered.add(event.node)

    asyncio.run(scene())

"""A local fleet of stub workers for tests, and waits that have deadlines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from cloud.local.provider import LocalProvider
from cloud.local.schedule import Schedule
from cloud.processes import Register, is_alive
from runtime.control.fleet.fleet import Fleet, LinkTimes, WorkerJoined, WorkerMessage

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
STUB = {"PARCAE_ENGINE": "stub_worker", "PYTHONPATH": f"{PROJECT}:{HERE}"}
Kind = TypeVar("Kind")


class Watcher:
    """Reads a fleet's events in order, keeps all, and waits for those that a test is about."""

    def __init__(self, provider: LocalProvider, fleet: Fleet, root: Path) -> None:
        self.provider = provider
        self.fleet = fleet
        self.root = root
        self.seen: list[object] = []
        self.pids: dict[str, int] = {}

    async def until(self, kind: type[Kind], node: str | None = None, within_s: float = 15.0) -> Kind:
        """The next event of that kind (about that node)."""
        async with asyncio.timeout(within_s):
            while True:
                event = await self.fleet.events.get()
                self.seen.append(event)
                if isinstance(event, WorkerJoined):
                    self.pids[event.node] = event.hello["pid"]
                if isinstance(event, kind) and node in (None, getattr(event, "node", None)):
                    return event

    async def joined(self, count: int) -> list[str]:
        """Wait for so many workers to join; their nodes in order."""
        return [(await self.until(WorkerJoined)).node for _ in range(count)]

    async def echo(self, node: str, text: str, within_s: float = 15.0) -> None:
        """A message to the worker and back."""
        self.fleet.send(node, {"t": "echo", "text": text})
        while (await self.until(WorkerMessage, node, within_s)).message != {"t": "echo", "text": text}:
            pass

    def agent_pid(self, node: str) -> int:
        """The process number of the node's agent."""
        records = self.provider.node(node).register.records()
        return next(record.pid for record in reversed(records) if record.role == "agent")


@asynccontextmanager
async def local_fleet(
    root: Path,
    schedule: Schedule | int = 1,
    wanted: int | None = None,
    *,
    times: LinkTimes | None = None,
    environment: Mapping[str, str] | None = None,
    journal: Any = None,
    gpus: int = 1,
    **settings: Any,
) -> AsyncIterator[Watcher]:
    """Start a fleet, stop it in the end, and see that nothing of it is left."""
    if isinstance(schedule, int):
        wanted = wanted or schedule
        schedule = Schedule.constant(schedule)
    provider = LocalProvider("job", root, schedule, environment={**STUB, **(environment or {})}, **settings)
    fleet = Fleet(provider, journal, "job", wanted or 1, times=times, poll_s=0.2, gpus=gpus)
    records = []
    await fleet.start()
    try:
        yield Watcher(provider, fleet, root)
    finally:
        records = recorded(root)
        await fleet.stop()
    assert [record for record in records if is_alive(record)] == []


def recorded(root: Path) -> list[Any]:
    """Every process group on record below `root`."""
    return [record for path in root.rglob("pgids") for record in Register(path).records()]


def wait_for(condition: Callable[[], object], within_s: float, what: str) -> float:
    """Poll what sends no event (another process's end); returns how long it took in seconds."""
    start_s = time.monotonic()
    while not condition():
        assert time.monotonic() - start_s < within_s, f"{what}: not within {within_s} s"
        time.sleep(0.01)
    return time.monotonic() - start_s

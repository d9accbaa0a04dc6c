"""The fleet: as many nodes as are wanted and to be had, their workers, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloud.provider import (
    CloudError,
    HearsOfTrouble,
    MaybeStillRunningError,
    SpotProvider,
    TellsNotices,
)
from cloud.types import Instance, InstanceState, NoticeKind
from runtime.control.fleet.deploy import AgentStart
from runtime.control.fleet.doors import write_door
from runtime.control.fleet.events import (
    FleetEvent,
    InstanceChanged,
    NodeBroken,
    NodeNoticed,
    RentFailed,
    WorkerFailed,
    WorkerJoined,
    WorkerLost,
    WorkerMessage,
)
from runtime.control.fleet.node_link import LinkTimes, NodeLink
from runtime.control.fleet.records import FleetJournal, Inheritance
from runtime.control.fleet.rental import Rental
from runtime.control.fleet.ssh import SshError
from runtime.control.tasks import cancelled
from runtime.planning.placement import instance_of

__all__ = [
    "Fleet",
    "FleetEvent",
    "InstanceChanged",
    "LinkTimes",
    "NodeBroken",
    "NodeNoticed",
    "RentFailed",
    "WorkerFailed",
    "WorkerJoined",
    "WorkerLost",
    "WorkerMessage",
]

_TICK_S = 0.2
_AGENTS_LEAVE_WITHIN_S = 1.0
_LOG = logging.getLogger(__name__)


class Fleet:
    """Rents, replaces, connects and supervises; tells what happens in `events`, in order.

    All times are in `times` (seconds). `poll_s` is how often the provider is asked about its instances.
    `agent_start` brings our packages to nodes that do not have them. `anchor` is an address of this machine
    that nodes shall reach through their SSH connections (see WorkerJoined.backup_port). `before`: what an
    earlier fleet of this job, whose process was killed, has left. `doors`: where it is written down how each
    node is reached. With several `gpus` on a node, the node of
    a worker's event is the worker's name (`planning.placement.worker_names`).
    """

    def __init__(
        self,
        provider: SpotProvider,
        journal: FleetJournal | None,
        job: str,
        wanted: int,
        *,
        times: LinkTimes | None = None,
        poll_s: float = 1.0,
        python: str = sys.executable,
        agent_start: AgentStart | None = None,
        anchor: tuple[str, int] | None = None,
        before: Inheritance | None = None,
        gpus: int = 1,
        doors: Path | None = None,
    ) -> None:
        self.events: asyncio.Queue[FleetEvent] = asyncio.Queue()
        self._provider, self._journal = provider, journal
        self._job, self._wanted = job, wanted
        self._times, self._poll_s = times or LinkTimes(), poll_s
        self._python, self._agent_start = python, agent_start
        self._anchor, self._gpus, self._before = anchor, gpus, before
        self._doors = doors
        self._controller_id = secrets.token_hex(8)
        self._instances: dict[str, Instance] = {}  # by id, ended ones included
        self._links: dict[str, NodeLink] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._endings: list[asyncio.Task[None]] = []
        self._rental = Rental(
            provider,
            journal,
            job,
            wanted,
            self._poll_s,
            self._instances,
            self._see,
            self._refresh,
            self._emit,
        )
        self._tick_task: asyncio.Task[None] | None = None
        self._stopping = False
        self._stopped: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to rent up to `wanted` instances and keep replacing those that go.

        Raises:
            CloudError: the provider cannot be used at all.
        """
        await self._provider.start()
        if self._before is not None:
            await self._take_over(self._before)
        self._rental.start()
        self._tick_task = asyncio.create_task(self._tick())

    async def _take_over(self, before: Inheritance) -> None:
        """Find again what an earlier fleet has rented; what the provider does not show any more has ended."""
        await self._provider.recover(before.instances, before.tokens)
        await self._refresh()
        for instance in before.instances:
            if instance.id not in self._instances:
                self._see(replace(instance, state=InstanceState.TERMINATED))
        if self._journal is not None:
            for token in before.tokens:
                self._journal.outcome(token, "looked after by a resumed job")

    def send(self, node: str, message: dict[str, Any]) -> None:
        """To the worker that joined last on `node`, in order; returns at once. Nobody there: dropped."""
        if (link := self._links.get(instance_of(node, self._gpus))) is not None:
            link.send(node, message)

    def kill_worker(self, node: str) -> None:
        """Give up a mute worker: WorkerLost now, WorkerJoined when its agent has started another."""
        if (link := self._links.get(instance_of(node, self._gpus))) is not None:
            link.restart_worker(node, "the coordinator has given it up")

    def end(self, node: str, why: str) -> None:
        """Give an instance up, with its workers: WorkerLost now, and another is rented in its place."""
        if (link := self._links.get(instance_of(node, self._gpus))) is not None:
            link.gone(why)
            self._endings.append(asyncio.create_task(self._end(link, why)))

    def instances(self) -> list[Instance]:
        """Every instance that this fleet has rented, ended ones included, in order of launch."""
        return list(self._instances.values())

    async def stop(self) -> None:
        """End workers, agents and instances; all are gone when it returns. Call it at any moment.

        Raises:
            MaybeStillRunningError: the provider could not prove that everything ended.
        """
        if self._stopped is None:
            self._stopped = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopped)

    # --- instances and their links

    async def _refresh(self) -> None:
        for instance in await self._provider.describe():
            self._see(instance)
        if isinstance(self._provider, TellsNotices):
            for name, notice in self._provider.notices().items():
                if (link := self._links.get(name)) is not None:
                    link.told_by_api(notice)

    def _see(self, instance: Instance) -> None:
        """The provider says this about an instance."""
        known = self._instances.get(instance.id)
        was, now = known.state if known is not None else None, instance.state
        if was is InstanceState.NOTICED and now is InstanceState.RUNNING:
            link = self._links.get(instance.name)
            if link is None or not link.spared(time.time()):
                return  # the API knows less than the machine itself
        if known is not None and known.state is instance.state:
            return
        self._instances[instance.id] = instance
        link = self._links.get(instance.name)
        mine = link is not None and link.instance.id == instance.id
        self._record(instance, link.pids if link is not None and mine else ())
        if instance.state in (InstanceState.TERMINATING, InstanceState.TERMINATED):
            if link is not None and mine:
                self._drop(link, "the instance has ended")
            self._emit(InstanceChanged(instance))
            self._rental.look()
            return
        self._emit(InstanceChanged(instance))
        if not mine and not self._stopping:
            self._adopt(instance)

    def _adopt(self, instance: Instance) -> None:
        old = self._links.get(instance.name)
        if old is not None:
            self._drop(old, "another instance of that name has come")
        link = NodeLink(
            instance,
            self._controller_id,
            target=lambda: self._target(instance),
            emit=self._emit,
            trouble=self._trouble,
            python=self._python,
            times=self._times,
            agent_start=self._agent_start,
            anchor=self._anchor,
            adopt=self._before is not None,
            gpus=self._gpus,
        )
        self._links[instance.name] = link
        self._tasks[instance.name] = asyncio.create_task(self._tend(link))

    def _target(self, instance: Instance) -> Any:
        try:
            return self._provider.ssh_target(instance)
        except CloudError as error:
            raise SshError(str(error)) from error

    async def _tend(self, link: NodeLink) -> None:
        try:
            await link.tend()
        except SshError as error:
            self._emit(NodeBroken(link.name, str(error)))
            await self._end(link, str(error))
        except Exception:  # noqa: BLE001 - one node's trouble must stay its own
            _LOG.exception("tending %s failed in an unforeseen way", link.name)
            await self._end(link, "its link failed")

    async def _end(self, link: NodeLink, why: str) -> None:
        """Have the provider end an instance: it is paid for until that succeeds, or it goes by itself."""
        link.gone(why)
        while self._links.get(link.name) is link:
            with contextlib.suppress(CloudError):
                await self._provider.terminate([link.name])
                break
            await asyncio.sleep(self._poll_s)
        self._rental.look()

    def _drop(self, link: NodeLink, why: str) -> None:
        link.gone(why)
        del self._links[link.name]
        self._tasks.pop(link.name).cancel()

    def _trouble(self, node: str, why: str) -> None:
        """A link cannot reach its node: have the provider asked what it knows."""
        _LOG.debug("%s: %s", node, why)
        if isinstance(self._provider, HearsOfTrouble):
            self._provider.suspect(node)
        self._rental.look()

    def _record(self, instance: Instance, pids: Sequence[int]) -> None:
        if self._journal is not None:
            self._journal.put_instance(self._job, instance, pids)

    def _open_door(self, instance: Instance) -> None:
        if self._doors is None or self._stopping:
            return
        with contextlib.suppress(CloudError):
            target = self._provider.ssh_target(instance)
            # Not in this thread: a disk may be slow.
            asyncio.get_running_loop().run_in_executor(None, write_door, self._doors, instance, target)

    def _emit(self, event: FleetEvent) -> None:
        self.events.put_nowait(event)
        if isinstance(event, WorkerJoined):
            link = self._links[instance_of(event.node, self._gpus)]
            self._record(self._instances[link.instance.id], link.pids)
            self._open_door(link.instance)
        elif isinstance(event, NodeNoticed) and event.notice.kind is NoticeKind.INTERRUPTION:
            link = self._links[event.node]
            instance = self._instances[link.instance.id]
            if instance.state in (InstanceState.BOOTING, InstanceState.RUNNING):
                self._see(instance.moved(InstanceState.NOTICED))
            self._rental.look()

    async def _tick(self) -> None:
        """Beats and silences. A machine that was too busy to run us must not make every node look dead."""
        due_s = time.monotonic() + _TICK_S
        while True:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            now_s = time.monotonic()
            for link in list(self._links.values()):
                link.tick(now_s, max(0.0, now_s - due_s))
            due_s = now_s + _TICK_S

    # --- the end

    async def _stop(self) -> None:
        self._stopping = True
        if self._doors is not None:
            shutil.rmtree(self._doors, ignore_errors=True)
        await self._rental.stop()
        ends = [link.attached for link in self._links.values()]
        for link in self._links.values():
            link.stop()
        waits = [asyncio.create_task(end.wait()) for end in ends if end is not None]
        if waits:
            await asyncio.wait(waits, timeout=_AGENTS_LEAVE_WITHIN_S)
        if self._tick_task is not None:
            self._tick_task.cancel()
        for link in list(self._links.values()):
            link.gone("the fleet has been stopped")
        await cancelled([*self._tasks.values(), *self._endings, *waits])
        try:
            async with asyncio.timeout(self._times.close_s):
                await self._provider.close()
        except TimeoutError as error:
            raise MaybeStillRunningError(
                f"{self._provider.name} close: not done within {self._times.close_s:g} s; run `parcae down`"
            ) from error
        finally:
            with contextlib.suppress(CloudError):
                await self._refresh()

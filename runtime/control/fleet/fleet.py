"""The fleet: as many nodes as are wanted and to be had, their workers, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cloud.provider import (
    CloudError,
    CredentialsError,
    HearsOfTrouble,
    MaybeStillRunningError,
    NoCapacityError,
    QuotaError,
    SpotProvider,
    TellsNotices,
)
from cloud.types import Instance, InstanceState, NoticeKind
from runtime.control.fleet.deploy import AgentStart
from runtime.control.fleet.events import (
    FleetEvent,
    InstanceChanged,
    NodeNoticed,
    RentFailed,
    WorkerFailed,
    WorkerJoined,
    WorkerLost,
    WorkerMessage,
)
from runtime.control.fleet.node_link import LinkTimes, NodeLink
from runtime.control.fleet.records import FleetJournal, Inheritance
from runtime.control.fleet.ssh import SshError
from runtime.control.tasks import cancelled
from runtime.planning.placement import instance_of

__all__ = [
    "Fleet",
    "FleetEvent",
    "InstanceChanged",
    "LinkTimes",
    "NodeNoticed",
    "RentFailed",
    "WorkerFailed",
    "WorkerJoined",
    "WorkerLost",
    "WorkerMessage",
]

_TICK_S = 0.2
_FIRST_PAUSE_S = 0.05
_ASK_AGAIN_S = 30.0
_DENIED_S = 60.0
_AGENTS_LEAVE_WITHIN_S = 1.0
_LOG = logging.getLogger(__name__)


class Fleet:
    """Rents, replaces, connects and supervises; tells what happens in `events`, in order.

    All times are in `times` (seconds). `poll_s` is how often the provider is asked about its instances.
    `agent_start` brings our packages to nodes that do not have them. `anchor` is an address of this machine
    that nodes shall reach through their SSH connections (see WorkerJoined.backup_port). `before`: what an
    earlier fleet of this job, whose process was killed, has left. With several `gpus` on a node, the node of
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
    ) -> None:
        self.events: asyncio.Queue[FleetEvent] = asyncio.Queue()
        self._provider, self._journal = provider, journal
        self._job, self._wanted = job, wanted
        self._times, self._poll_s = times or LinkTimes(), poll_s
        self._python, self._agent_start = python, agent_start
        self._anchor, self._gpus, self._before = anchor, gpus, before
        self._controller_id = secrets.token_hex(8)
        self._instances: dict[str, Instance] = {}  # by id, ended ones included
        self._links: dict[str, NodeLink] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._endings: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._rent_task: asyncio.Task[None] | None = None
        self._tick_task: asyncio.Task[None] | None = None
        self._stopping, self._ended = False, asyncio.Event()
        self._told = ""
        self._stopped: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to rent up to `wanted` instances and keep replacing those that go.

        Raises:
            CloudError: the provider cannot be used at all.
        """
        await self._provider.start()
        if self._before is not None:
            await self._take_over(self._before)
        self._rent_task = asyncio.create_task(self._rent())
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

    # --- renting

    async def _rent(self) -> None:
        pause_s = self._poll_s
        while not self._stopping:
            try:
                await self._keep_wanted()
            except CloudError as error:
                self._tell_trouble(str(error), error)
                # A quota and credentials change by a person's hand, if at all.
                denied = isinstance(error, CredentialsError | QuotaError)
                pause_s = min(2 * pause_s, _DENIED_S) if denied else self._poll_s
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), pause_s)
            except Exception:  # noqa: BLE001 - renting must go on
                _LOG.exception("renting failed in an unforeseen way")
                await asyncio.sleep(self._poll_s)

    async def _keep_wanted(self) -> None:
        """Hold as many as are wanted, and look after them, until the provider fails or the fleet stops."""
        capacity: asyncio.Task[None] | None = None  # the provider's word that asking again may help
        refused = 0  # how many it refused when we asked last
        pause_s = _FIRST_PAUSE_S
        try:
            while not self._stopping:
                self._changed.clear()
                await self._refresh()
                missing = max(0, self._wanted - self._held())
                if capacity is not None and capacity.done():
                    capacity.result()
                    capacity, refused = None, 0
                if missing > refused:
                    refused = missing - await self._request(missing)
                    if refused < missing:
                        pause_s = _FIRST_PAUSE_S
                        continue
                    # A provider may call capacity likely and then refuse again: do not ask in a tight loop.
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, self._poll_s)
                refused = min(refused, missing)
                if refused and capacity is None:
                    capacity = asyncio.create_task(self._provider.wait_for_capacity(_ASK_AGAIN_S))
                await self._wait(capacity)
        finally:
            if capacity is not None:
                capacity.cancel()

    def _held(self) -> int:
        """Instances that count: a noticed one is as good as gone, so its replacement may boot meanwhile."""
        counted = (InstanceState.REQUESTED, InstanceState.BOOTING, InstanceState.RUNNING)
        return sum(instance.state in counted for instance in self._instances.values())

    async def _request(self, count: int) -> int:
        """Ask for so many; how many came."""
        token = secrets.token_hex(16)
        if self._journal is not None:
            self._journal.intent(token, self._job, "request", count)
        try:
            reply = await self._provider.request(count, token)
        except CloudError as error:
            if self._journal is not None:
                self._journal.outcome(token, f"failed: {error}")
            raise
        for instance in reply.instances:
            self._see(instance)
        if self._journal is not None:
            names = " ".join(instance.name for instance in reply.instances)
            self._journal.outcome(token, f"{names or 'none'}; refused {reply.refused} {reply.why}".rstrip())
        if reply.shortage:
            self._tell_trouble(reply.shortage, NoCapacityError(reply.shortage))
        elif reply.instances:
            self._told = ""
        return len(reply.instances)

    def _tell_trouble(self, why: str, error: CloudError) -> None:
        """Once, not at every attempt; seconds that count down are no news."""
        gist = "".join(char for char in why if not char.isdigit())
        if gist != self._told:
            self._told = gist
            self._emit(RentFailed(why, error))

    async def _wait(self, capacity: asyncio.Task[None] | None) -> None:
        """Until something changes, capacity comes, or it is time to look after the instances."""
        change = asyncio.create_task(self._changed.wait())
        waits: list[asyncio.Task[Any]] = [change] if capacity is None else [change, capacity]
        try:
            await asyncio.wait(waits, timeout=self._poll_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()

    async def _refresh(self) -> None:
        for instance in await self._provider.describe():
            self._see(instance)
        if isinstance(self._provider, TellsNotices):
            for name, notice in self._provider.notices().items():
                if (link := self._links.get(name)) is not None:
                    link.told_by_api(notice)

    # --- instances and their links

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
            self._changed.set()
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
            self._emit(RentFailed(f"{link.name}: {error}; ending the instance", None))
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
        self._changed.set()

    def _drop(self, link: NodeLink, why: str) -> None:
        link.gone(why)
        del self._links[link.name]
        self._tasks.pop(link.name).cancel()

    def _trouble(self, node: str, why: str) -> None:
        """A link cannot reach its node: have the provider asked what it knows."""
        _LOG.debug("%s: %s", node, why)
        if isinstance(self._provider, HearsOfTrouble):
            self._provider.suspect(node)
        self._changed.set()

    def _record(self, instance: Instance, pids: Sequence[int]) -> None:
        if self._journal is not None:
            self._journal.put_instance(self._job, instance, pids)

    def _emit(self, event: FleetEvent) -> None:
        self.events.put_nowait(event)
        if isinstance(event, WorkerJoined):
            link = self._links[instance_of(event.node, self._gpus)]
            self._record(self._instances[link.instance.id], link.pids)
        elif isinstance(event, NodeNoticed) and event.notice.kind is NoticeKind.INTERRUPTION:
            link = self._links[event.node]
            instance = self._instances[link.instance.id]
            if instance.state in (InstanceState.BOOTING, InstanceState.RUNNING):
                self._see(instance.moved(InstanceState.NOTICED))
            self._changed.set()

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
        self._ended.set()
        self._changed.set()
        if self._rent_task is not None:
            # A request under way is let finish, so that what it rents is known; a slow one is cut off: its
            # token and the provider's own sweep find what came of it.
            await asyncio.wait([self._rent_task], timeout=2.0)
            self._rent_task.cancel()
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

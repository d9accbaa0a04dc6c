"""How a fleet rents: as many instances as are wanted, as long as it lasts, however often it is refused."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from cloud.provider import CloudError, CredentialsError, NoCapacityError, QuotaError, SpotProvider
from cloud.types import Instance, InstanceState
from runtime.control.fleet.events import RentFailed
from runtime.control.fleet.records import FleetJournal

_FIRST_PAUSE_S = 0.05
_ASK_AGAIN_S = 30.0
_DENIED_S = 60.0
_LET_FINISH_S = 2.0
_LOG = logging.getLogger(__name__)


class Rental:
    """Keeps `wanted` of a fleet's `instances` rented, from `start` to `stop`.

    `see` is told of every instance that comes, `refresh` asks the provider about all of them, every `poll_s`
    seconds at least, and `emit` takes what goes wrong.
    """

    def __init__(
        self,
        provider: SpotProvider,
        journal: FleetJournal | None,
        job: str,
        wanted: int,
        poll_s: float,
        instances: Mapping[str, Instance],
        see: Callable[[Instance], None],
        refresh: Callable[[], Awaitable[None]],
        emit: Callable[[RentFailed], None],
    ) -> None:
        self._provider, self._journal = provider, journal
        self._job, self._wanted, self._poll_s = job, wanted, poll_s
        self._instances, self._see, self._refresh, self._emit = instances, see, refresh, emit
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._told = ""

    def start(self) -> None:
        """Begin to rent."""
        self._task = asyncio.create_task(self._rent())

    def look(self) -> None:
        """Something has changed: look after the instances now."""
        self._changed.set()

    async def stop(self) -> None:
        """Rent no more.

        A request under way is let finish, so that what it rents is known; a slow one is cut off: its token
        and the provider's own sweep find what came of it.
        """
        self._ended.set()
        self._changed.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=_LET_FINISH_S)
            self._task.cancel()

    async def _rent(self) -> None:
        pause_s = self._poll_s
        while not self._ended.is_set():
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
            while not self._ended.is_set():
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

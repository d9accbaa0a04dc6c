"""Machines that one already has, as a cloud: a host that goes away was preempted, one that is back is new.

Each host has a watch of its own. A host that is not in use is knocked at from time to time, and can be
rented once it opens. One that is in use is left alone until the fleet reports trouble with it; then it is
knocked at until it opens again, or is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from cloud.hosts.inventory import Host
from cloud.provider import CloudError, MaybeStillRunningError
from cloud.types import Instance, InstanceState, LaunchReply, OwnSshTarget

_FIRST_LOOK_S = 3.0


def run_of(instance: Instance) -> str:
    """The run that took an instance, by its id (NAME-RUN-NUMBER)."""
    return instance.id.rsplit("-", 2)[1]


class HostRefusesError(CloudError):
    """The host is there, and nobody listens for SSH: it is going down, or coming up."""


class HostAccess(Protocol):
    """What the provider does on a host, over SSH. Both calls may take a few seconds."""

    async def knock(self, host: Host) -> None:
        """Log in and out again.

        Raises:
            HostRefusesError: nobody listens there.
            CloudError: it cannot be reached, or does not let us in; the message says why.
        """
        ...

    async def clear(self, host: Host, instance: Instance) -> None:
        """End what runs there for this instance and remove its files; to find nothing is no error.

        Raises:
            CloudError: it cannot be reached, or something there does not end.
        """
        ...


@dataclass(frozen=True)
class HostTimes:
    """How patient we are with hosts, in seconds.

    `knock_s` is the time between two knocks at a closed door, `again_s` at one that has just closed; one
    that stays closed for `gone_s` is given up. One that let us in and then did not work is not asked again
    for `cool_s`. After `lease_s` without us, an agent has ended by itself.
    """

    knock_s: float = 5.0
    again_s: float = 0.5
    gone_s: float = 10.0
    cool_s: float = 60.0
    lease_s: float = 30.0


@dataclass
class _Seat:
    """One host as it is now. `instance` is the one in use; the last that was, is in `last`."""

    host: Host
    is_open: bool = False
    instance: Instance | None = None
    last: Instance | None = None
    ended_s: float = 0.0  # when the last one ended, on the monotonic clock
    not_before_s: float = 0.0
    trouble: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)  # it has been knocked at once
    why: str = "not reached yet"

    @property
    def said(self) -> str:
        """Why it is closed, with its name."""
        return self.why if self.host.name in self.why else f"{self.host.name}: {self.why}"

    @property
    def is_resting(self) -> bool:
        """Whether it was given back a short while ago; the reason was told then."""
        return time.monotonic() < self.not_before_s

    @property
    def is_free(self) -> bool:
        """Whether it can be rented now."""
        return self.is_open and self.instance is None and not self.is_resting


class HostsProvider:
    """A SpotProvider over hosts of one's own. Nothing is provisioned, and nothing is switched off."""

    def __init__(
        self, job: str, run: str, hosts: Sequence[Host], access: HostAccess, times: HostTimes | None = None
    ) -> None:
        """`run` tells this run from others of the job's name; it is in the ids of instances."""
        self._job = job
        self._run = run
        self._access = access
        self._times = times or HostTimes()
        self._seats = {host.name: _Seat(host) for host in hosts}
        self._launches = 0
        self._ended: list[Instance] = []
        self._replies: dict[str, LaunchReply] = {}
        self._capacity = asyncio.Event()
        self._watches: list[asyncio.Task[None]] = []
        self._closed = False

    @property
    def name(self) -> str:
        """`hosts`."""
        return "hosts"

    async def start(self) -> None:
        """Look which hosts are up, for a few seconds at most, and go on looking."""
        self._watches = [asyncio.create_task(self._watch(seat)) for seat in self._seats.values()]
        first = [asyncio.create_task(seat.asked.wait()) for seat in self._seats.values()]
        await asyncio.wait(first, timeout=_FIRST_LOOK_S)
        for task in first:
            task.cancel()

    async def recover(self, held: Sequence[Instance], tokens: Sequence[str]) -> None:
        """Hosts that were in use are in use; one that does not answer is given up when the fleet says so."""
        for instance in held:
            self._launches = max(self._launches, int(instance.id.rsplit("-", 1)[1]))
            if (seat := self._seats.get(instance.name)) is not None:
                seat.instance = replace(instance, state=InstanceState.RUNNING)

    async def request(self, count: int, token: str) -> LaunchReply:
        """Take up to `count` hosts that are up and not in use, in the order of the file."""
        if not self._watches or self._closed:
            raise CloudError(f"hosts request: the provider is {'closed' if self._closed else 'not started'}")
        if token in self._replies:
            return self._replies[token]
        taken: list[Instance] = []
        for seat in [seat for seat in self._seats.values() if seat.is_free][:count]:
            self._launches += 1
            seat.instance = Instance(
                id=f"{seat.host.name}-{self._run}-{self._launches}",
                name=seat.host.name,
                job=self._job,
                token=token,
                pool=seat.host.pool,
                state=InstanceState.RUNNING,
                launched_s=time.time(),
            )
            seat.trouble.clear()
            taken.append(seat.instance)
        refused = count - len(taken)
        closed = [seat.said for seat in self._seats.values() if not seat.is_open and not seat.is_resting]
        shortage = "; ".join(closed) if refused else ""
        why = shortage or (f"all {len(self._seats)} hosts are in use" if refused else "")
        reply = LaunchReply(tuple(taken), refused, why, shortage)
        self._replies[token] = reply
        return reply

    async def wait_for_capacity(self, timeout_s: float) -> None:
        """Return when a host is up that is not in use."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not any(seat.is_free for seat in self._seats.values()):
                    self._capacity.clear()
                    await self._capacity.wait()

    async def describe(self) -> Sequence[Instance]:
        """Every instance of the job, ended ones first."""
        held = [seat.instance for seat in self._seats.values() if seat.instance is not None]
        return [*self._ended, *held]

    def suspect(self, name: str) -> None:
        """The fleet cannot reach a node: knock at its host."""
        if name in self._seats:
            self._seats[name].trouble.set()

    async def terminate(self, names: Sequence[str]) -> None:
        """Give hosts back. They are asked again after a while: what was wrong may have been mended."""
        for name in names:
            seat = self._seats.get(name)
            if seat is not None and seat.instance is not None:
                seat.not_before_s = time.monotonic() + self._times.cool_s
                self._end(seat, "it did not work")

    def ssh_target(self, instance: Instance) -> OwnSshTarget:
        """How the host is reached.

        Raises:
            CloudError: the instance has ended.
        """
        seat = self._seats[instance.name]
        if seat.instance is None or seat.instance.id != instance.id:
            raise CloudError(f"hosts ssh_target: {instance.name} has gone away")
        return seat.host.target

    async def close(self) -> None:
        """End what runs on the hosts for this job, and remove its files there.

        Raises:
            MaybeStillRunningError: of a host that could not be reached this cannot be said. Its agent ends by
            itself when its lease runs out.
        """
        self._closed = True
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        used = [seat for seat in self._seats.values() if seat.instance is not None or seat.last is not None]
        doubts = [doubt for doubt in await asyncio.gather(*map(self._clear, used)) if doubt]
        if doubts:
            raise MaybeStillRunningError(
                f"hosts close: {'; '.join(doubts)}. What runs there ends by itself within "
                f"{self._times.lease_s:g} s of the last word from here"
            )

    async def _clear(self, seat: _Seat) -> str:
        """Leave a host as it was; what may still run there, in words."""
        instance = seat.instance or seat.last
        assert instance is not None
        was_held = seat.instance is not None
        if was_held:
            self._end(seat, "the job has ended")
        try:
            await self._access.clear(seat.host, instance)
        except CloudError as error:
            # A host that went away long ago has obeyed its lease, or has no processes at all.
            if was_held or time.monotonic() - seat.ended_s < self._times.lease_s:
                return f"{seat.host.name}: {error}"
        return ""

    # --- watching

    def _end(self, seat: _Seat, why: str) -> None:
        assert seat.instance is not None
        seat.last = seat.instance.moved(InstanceState.TERMINATED)
        self._ended.append(seat.last)
        seat.instance, seat.ended_s = None, time.monotonic()
        seat.is_open, seat.why = False, why
        seat.trouble.set()

    async def _watch(self, seat: _Seat) -> None:
        times = self._times
        while True:
            if seat.instance is not None:
                await seat.trouble.wait()
                await self._look_after(seat)
                continue
            seat.trouble.clear()
            seat.is_open = await self._knock(seat)
            if seat.is_free:
                self._capacity.set()
            seat.asked.set()
            # A host that is up and that nobody wants is left in peace for longer.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(times.knock_s * (6 if seat.is_free else 1)):
                    await seat.trouble.wait()

    async def _look_after(self, seat: _Seat) -> None:
        """A host in use is in trouble: until it opens, or is given up."""
        since_s = time.monotonic()
        while (instance := seat.instance) is not None:
            seat.trouble.clear()
            refused = False
            try:
                await self._access.knock(seat.host)
                return
            except HostRefusesError as error:
                refused, seat.why = True, str(error)
            except CloudError as error:
                seat.why = str(error)
            if seat.instance is instance and (refused or time.monotonic() - since_s > self._times.gone_s):
                self._end(seat, seat.why)
                return
            await asyncio.sleep(self._times.again_s)

    async def _knock(self, seat: _Seat) -> bool:
        try:
            await self._access.knock(seat.host)
        except CloudError as error:
            seat.why = str(error)
            return False
        return True

"""What every rented fleet needs, whichever the cloud: requests that are never lost, looks that are fresh."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cloud.pools import Pools
from cloud.provider import CloudError, MaybeStillRunningError
from cloud.settings import FleetSettings, RentedTimes
from cloud.types import Instance, InstanceState, LaunchReply, Pool, PoolTally, SshTarget

_FRESH_S = 1.0
MARKET_EVERY_S = 900.0
_HELD = (InstanceState.BOOTING, InstanceState.RUNNING, InstanceState.NOTICED)


@dataclass(frozen=True)
class Seen:
    """An instance as the API showed it last, how it is reached, and whether the cloud took it back."""

    instance: Instance
    public_ip: str
    private_ip: str
    ssh_port: int
    taken: bool = False

    @property
    def ended(self) -> bool:
        """Whether the API says that it is gone."""
        return self.instance.state is InstanceState.TERMINATED

    @property
    def going(self) -> bool:
        """Whether it is gone, or on its way."""
        return self.instance.state in (InstanceState.TERMINATING, InstanceState.TERMINATED)


class RentedProvider(ABC):
    """A SpotProvider around the blocking calls of one cloud's API, which run in threads.

    `smallest` is how many instances the first request must bring at least: the smallest useful pipeline.
    `in_flight_s` is how long the end waits for a request that is under way. `clock` is Unix time, for what is
    written down; patience is measured by a clock that nobody sets back.
    """

    name: str
    in_flight_s: float

    def __init__(
        self,
        settings: FleetSettings,
        times: RentedTimes,
        pools: Sequence[Pool],
        smallest: int,
        clock: Callable[[], float],
    ) -> None:
        self._common, self._patience = settings, times
        self._pools = Pools(pools, times.cool_down_s)
        self._smallest, self._clock, self._steady = smallest, clock, time.monotonic
        self._lock = threading.Lock()
        self._seen: dict[str, Seen] = {}  # by name
        self._looked_s = -math.inf
        self._replies: dict[str, LaunchReply] = {}
        self._in_flight: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._in_doubt = False  # a launch that nobody has waited for may still bring something
        self._given_back: set[str] = set()
        self._prices: dict[tuple[str, str], float] = {}  # newer than the pools', by instance type and zone
        self._scores: dict[tuple[str, str], float] = {}
        self._asked_s = -math.inf

    # --- what a cloud does

    @abstractmethod
    async def start(self) -> None:
        """Make, or find, what launches need."""

    @abstractmethod
    def _replay(self, tokens: Sequence[str]) -> None:
        """Find out what these requests have brought, by sending them again under their own ids."""

    @abstractmethod
    def _launch(self, count: int, token: str) -> LaunchReply:
        """Rent up to `count` now."""

    @abstractmethod
    def _look(self) -> None:
        """Bring `_seen` up to date with the API."""

    @abstractmethod
    def _terminate(self, names: Sequence[str]) -> None:
        """Ask for the end of these."""

    @abstractmethod
    def _end(self) -> None:
        """Terminate everything of this launch and wait for the API's word."""

    @abstractmethod
    def _keys(self) -> tuple[str, str]:
        """Our private SSH key, and the public half of the nodes' host key."""

    def _ask_market(self) -> None:  # noqa: B027 - where the API tells nothing more
        """Bring `_prices` and `_scores` up to date."""

    # --- what is the same everywhere

    def tallies(self) -> Sequence[PoolTally]:
        """How every pool has treated us; what we gave back ourselves is no loss."""
        ones = list(self._seen.values())
        made = []
        for pool in self._pools.all:
            key = pool.instance_type, pool.zone
            mine = [one for one in ones if (one.instance.pool.instance_type, one.instance.pool.zone) == key]
            lost = sum(one.ended and one.instance.name not in self._given_back for one in mine)
            held = sum(one.instance.state in _HELD for one in mine)
            made.append(
                PoolTally(
                    pool.key, held, lost, len(mine), self._pools.tried[key], self._pools.refused[key],
                    self._prices.get(key, pool.spot_usd_per_hour), pool.on_demand_usd_per_hour,
                    self._scores.get(key),
                )
            )  # fmt: skip
        return made

    async def ask_market(self) -> None:
        """A few times an hour: neither prices nor scores move faster."""
        if self._steady() - self._asked_s >= MARKET_EVERY_S:
            self._asked_s = self._steady()
            await asyncio.to_thread(self._ask_market)

    async def request(self, count: int, token: str) -> LaunchReply:
        """Rent up to `count`. A cancelled request goes on by itself: `close` waits for what it brings."""
        if token in self._replies:
            return self._replies[token]
        if self._closing:
            return LaunchReply((), count, "the provider is being closed")
        task = asyncio.create_task(asyncio.to_thread(self._launch, count, token))
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)
        self._replies[token] = await asyncio.shield(task)
        return self._replies[token]

    async def recover(self, held: Sequence[Instance], tokens: Sequence[str]) -> None:
        """The API is asked about `held`, about all that is tagged as ours, and what `tokens` have brought."""
        with self._lock:
            for instance in held:
                self._seen[instance.name] = Seen(instance, "", "", self._common.ssh_port)
        await asyncio.to_thread(self._replay, list(tokens))

    async def wait_for_capacity(self, timeout_s: float) -> None:
        """Until a pool's time of rest is over."""
        pause_s = self._pools.next_open_s(self._steady())
        await asyncio.sleep(min(timeout_s, pause_s if pause_s > 0 else self._patience.describe_s))

    async def describe(self) -> Sequence[Instance]:
        """What the API says, at most a second old."""
        if self._steady() - self._looked_s >= _FRESH_S:
            self._looked_s = self._steady()
            await asyncio.to_thread(self._look)
        return [one.instance for one in self._seen.values()]

    def ssh_target(self, instance: Instance) -> SshTarget:
        """The public address (the private one inside), with the host key that the instance was born with.

        Raises:
            CloudError: it has no address yet.
        """
        one = self._seen.get(instance.name)
        address = "" if one is None else one.public_ip or one.private_ip
        if one is not None and self._common.inside:
            address = one.private_ip or one.public_ip
        if one is None or not address:
            raise CloudError(f"{self.name}: {instance.name} has no address yet")
        private, host_public = self._keys()
        return SshTarget(address, one.ssh_port, self._common.user, private, host_public)

    def private_address(self, instance: Instance) -> str:
        """The address at which other nodes reach it."""
        one = self._seen.get(instance.name)
        return one.private_ip if one is not None else ""

    async def terminate(self, names: Sequence[str]) -> None:
        """Ask for the end of these."""
        self._given_back.update(names)
        await asyncio.to_thread(self._terminate, list(names))
        self._looked_s = -math.inf

    async def close(self) -> None:
        """Terminate everything of this launch, requests in flight included, and wait for the API's word.

        Raises:
            MaybeStillRunningError: the API did not say that all of it is gone.
        """
        self._closing = True
        late: set[asyncio.Task[Any]] = set()
        if self._in_flight:
            done, late = await asyncio.wait(self._in_flight, timeout=self.in_flight_s)
            for task in done:
                task.exception()
        self._in_doubt = bool(late)
        await asyncio.to_thread(self._end)  # what is there costs money meanwhile
        if late:
            raise MaybeStillRunningError(
                f"{self.name} close: a launch is still under way; run `parcae down` in a minute"
            )
        self._looked_s = math.inf  # nothing is left to look at

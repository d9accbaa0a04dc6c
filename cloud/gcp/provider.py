"""Compute Engine as a SpotProvider: launches by bulkInsert, the API's word for what lives."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cloud.gcp.api import Api
from cloud.gcp.bootstrap import startup_script
from cloud.gcp.errors import ApiError, Verdict
from cloud.gcp.launch_record import LaunchRecord
from cloud.gcp.requests import SSH_PORT_ITEM, TOKEN_LABEL, bulk_insert_request, items_of, last_part
from cloud.gcp.settings import GcpSettings
from cloud.gcp.sweep import delete, delete_until_gone, instances_of, settle
from cloud.provider import CloudError, MaybeStillRunningError
from cloud.types import Instance, InstanceState, LaunchReply, Pool, SshTarget

_FRESH_S = 1.0
_IN_FLIGHT_S = 60.0
_STATES = {
    "PROVISIONING": InstanceState.BOOTING,
    "STAGING": InstanceState.BOOTING,
    "RUNNING": InstanceState.RUNNING,
    "REPAIRING": InstanceState.RUNNING,
    "PENDING_STOP": InstanceState.TERMINATING,
    "STOPPING": InstanceState.TERMINATING,
    "SUSPENDING": InstanceState.TERMINATING,
    "SUSPENDED": InstanceState.TERMINATED,
    "STOPPED": InstanceState.TERMINATED,
    "TERMINATED": InstanceState.TERMINATED,
    "DEPROVISIONING": InstanceState.TERMINATING,
}
_ENDED = InstanceState.TERMINATED


@dataclass(frozen=True)
class Seen:
    """An instance as the API showed it last, and how it is reached."""

    instance: Instance
    public_ip: str
    private_ip: str
    ssh_port: int


class GcpProvider:
    """One launch in one region. `pools` are in order of preference; those of a zone are asked for together.

    `smallest` is how many instances the first request must bring at least: the smallest useful pipeline.
    """

    def __init__(
        self,
        api: Api,
        settings: GcpSettings,
        record: LaunchRecord,
        pools: Sequence[Pool],
        smallest: int = 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._api, self._settings, self._record = api, settings, record
        self._pools = list(pools)
        self._smallest, self._clock = smallest, clock
        self._script = startup_script(settings, record.host_key)
        self._closed_until_s: dict[str, float] = {}  # by zone: it had nothing for us
        self._why_closed: dict[str, str] = {}
        self._seen: dict[str, Seen] = {}
        self._lock = threading.Lock()
        self._looked_s = 0.0
        self._replies: dict[str, LaunchReply] = {}
        self._in_flight: set[asyncio.Task[Any]] = set()
        self._closing = False

    @property
    def name(self) -> str:
        """`gcp`."""
        return "gcp"

    async def start(self) -> None:
        """Nothing has to be made before an instance: keys and script travel with the request."""

    # --- launching

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

    def _launch(self, count: int, token: str) -> LaunchReply:
        got: list[Instance] = []
        held = any(one.instance.state is not _ENDED for one in list(self._seen.values()))
        for number, zone in enumerate(self._open_zones()):
            missing = count - len(got)
            if not missing or self._closing:
                break
            least = min(self._smallest, missing) if not held and not got else 1
            pools = [pool for pool in self._pools if pool.zone == zone]
            try:
                got += self._bulk_insert(pools, missing, least, token, number)
            except ApiError as error:
                if error.verdict is not Verdict.NEXT_POOL:
                    if got:
                        break  # what came is reported; the same trouble comes again with the next request
                    raise error.sorted from error
                self._closed_until_s[zone] = self._clock() + self._settings.times.cool_down_s
                self._why_closed[zone] = str(error)
        shortage = "" if got else "; ".join(self._why_closed.values()) or "no zone is open"
        return LaunchReply(tuple(got), count - len(got), shortage, shortage)

    def _open_zones(self) -> list[str]:
        now_s = self._clock()
        zones = dict.fromkeys(pool.zone for pool in self._pools)
        return [zone for zone in zones if self._closed_until_s.get(zone, 0.0) <= now_s]

    def _bulk_insert(
        self, pools: Sequence[Pool], count: int, least: int, token: str, number: int
    ) -> list[Instance]:
        """Ask one zone, wait for the operation, and look what it brought.

        The request is on the disk before it is sent, and its operation's name before it is waited for.
        """
        record, api = self._record, self._api
        request = bulk_insert_request(
            record.owner,
            self._settings,
            api.project,
            record.region,
            pools,
            count,
            least,
            token,
            number,
            record.client_key.public,
            self._script,
        )
        record.sending(request)
        try:
            operation = api.change("RegionInstancesClient", "bulk_insert", request)
            record.accepted(request, operation.name)
            api.finish(operation, self._settings.times.operation_s)
        except ApiError as error:
            if error.verdict is not Verdict.WAIT:  # else nobody knows: `settle` will find out
                record.done(request)
            raise
        rows = [row for row in instances_of(api, record.owner) if row.labels.get(TOKEN_LABEL) == token]
        with self._lock:
            new = [row for row in rows if row.name not in self._seen]
            for row in new:
                self._note(row, token)
        record.done(request)
        return [self._seen[row.name].instance for row in new]

    async def wait_for_capacity(self, timeout_s: float) -> None:
        """Until a zone's time of rest is over."""
        until_s = min((self._closed_until_s.get(pool.zone, 0.0) for pool in self._pools), default=0.0)
        pause_s = until_s - self._clock()
        await asyncio.sleep(min(timeout_s, pause_s if pause_s > 0 else self._settings.times.describe_s))

    # --- looking

    async def describe(self) -> Sequence[Instance]:
        """What the API says, at most a second old. Who is not shown any more has been deleted."""
        if self._clock() - self._looked_s >= _FRESH_S:
            self._looked_s = self._clock()
            await asyncio.to_thread(self._look)
        return [one.instance for one in self._seen.values()]

    def _look(self) -> None:
        # Only those that were known before the question: an answer says nothing about later ones.
        with self._lock:
            known = [name for name, one in self._seen.items() if one.instance.state is not _ENDED]
        try:
            rows = instances_of(self._api, self._record.owner)
        except ApiError as error:
            raise error.sorted from error
        shown = {row.name for row in rows}
        with self._lock:
            for row in rows:
                self._note(row, row.labels.get(TOKEN_LABEL, ""))
            for name in set(known) - shown:
                self._move(name, _ENDED)

    def _note(self, row: Any, token: str) -> None:
        state = _STATES.get(row.status, InstanceState.BOOTING)
        if (known := self._seen.get(row.name)) is None:
            instance = Instance(
                id=str(row.id),
                name=row.name,
                job=self._record.job,
                token=token,
                pool=self._pool_of(last_part(row.zone), last_part(row.machine_type)),
                state=state,
                launched_s=datetime.fromisoformat(row.creation_timestamp).timestamp(),
            )
        else:
            instance = known.instance
        card = row.network_interfaces[0] if row.network_interfaces else None
        public = card.access_configs[0].nat_i_p if card is not None and card.access_configs else ""
        port = items_of([{"key": item.key, "value": item.value} for item in row.metadata.items])
        self._seen[row.name] = Seen(
            instance,
            public,
            card.network_i_p if card is not None else "",
            int(port.get(SSH_PORT_ITEM, self._settings.ssh_port)),
        )
        self._move(row.name, state)

    def _move(self, name: str, state: InstanceState) -> None:
        """To a later state; an answer that is older than what we know changes nothing."""
        one = self._seen[name]
        order = list(InstanceState)
        if order.index(state) > order.index(one.instance.state):
            self._seen[name] = Seen(
                one.instance.moved(state), one.public_ip, one.private_ip, one.ssh_port
            )

    def _pool_of(self, zone: str, machine_type: str) -> Pool:
        for pool in self._pools:
            if (pool.zone, pool.instance_type) == (zone, machine_type):
                return pool
        return Pool(zone, machine_type, 1, 0.0, 0.0)

    def ssh_target(self, instance: Instance) -> SshTarget:
        """The public address, with the host key that the startup script installs.

        Raises:
            CloudError: it has no address yet.
        """
        one = self._seen.get(instance.name)
        address = one.public_ip or one.private_ip if one is not None else ""
        if one is None or not address:
            raise CloudError(f"gcp: {instance.name} has no address yet")
        record = self._record
        return SshTarget(
            address, one.ssh_port, self._settings.user, record.client_key.private, record.host_key.public
        )

    def private_address(self, instance: Instance) -> str:
        """The address at which other nodes reach it."""
        one = self._seen.get(instance.name)
        return one.private_ip if one is not None else ""

    # --- ending

    async def terminate(self, names: Sequence[str]) -> None:
        """Ask for the end of these."""
        await asyncio.to_thread(self._terminate, list(names))

    def _terminate(self, names: Sequence[str]) -> None:
        try:
            for name in names:
                if (one := self._seen.get(name)) is not None:
                    delete(self._api, name, one.instance.pool.zone)
        except ApiError as error:
            raise error.sorted from error
        self._looked_s = 0.0

    async def close(self) -> None:
        """Delete everything of this launch, requests in flight included, and wait for the API's word.

        Raises:
            MaybeStillRunningError: the API did not say that all are gone.
        """
        self._closing = True
        if self._in_flight:
            done, late = await asyncio.wait(self._in_flight, timeout=_IN_FLIGHT_S)
            for task in done:
                task.exception()
            if late:
                raise MaybeStillRunningError(
                    "gcp close: a launch is still under way; run `parcae down` in a minute"
                )
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        times = self._settings.times
        try:
            settle(self._api, self._record, times.operation_s)
            delete_until_gone(self._api, self._record.owner, times.close_s)
        except ApiError as error:
            raise MaybeStillRunningError(f"{error}; run `parcae down` again") from error
        with self._lock:
            for name in self._seen:
                self._move(name, _ENDED)
        self._looked_s = self._clock() + 1e9  # nothing is left to look at

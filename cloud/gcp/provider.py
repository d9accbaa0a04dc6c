"""Compute Engine as a SpotProvider: launches by bulkInsert, the API's word for what lives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from cloud.gcp.api import Api
from cloud.gcp.bootstrap import startup_script
from cloud.gcp.errors import ApiError
from cloud.gcp.inserts import insert, settle
from cloud.gcp.launch_record import LaunchRecord
from cloud.gcp.market import on_demand_usd_per_hour, prospects
from cloud.gcp.requests import SSH_PORT_ITEM, TOKEN_LABEL, bulk_insert_request, items_of, last_part
from cloud.gcp.settings import GcpSettings
from cloud.gcp.sweep import delete, delete_until_gone, in_doubt, seen_instances
from cloud.pools import INTERRUPTED
from cloud.rented import RentedProvider, Seen
from cloud.types import Instance, InstanceState, LaunchReply, Notice, NoticeKind, Pool

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
# What an instance is called between the word to power off and the loss of its power, and how long that lasts
# for a spot VM. Source: the API's description of `Scheduling.skipGuestOsShutdown`.
_GOING, POWER_OFF_S = ("PENDING_STOP", "STOPPING"), 30.0


def by_zone(pools: Sequence[Pool]) -> dict[str, list[Pool]]:
    """The zones in the order of their best pools, each with its pools, the best first."""
    zones: dict[str, list[Pool]] = {}
    for pool in pools:
        zones.setdefault(pool.zone, []).append(pool)
    return zones


class GcpProvider(RentedProvider):
    """One launch in one region. `pools`: the preferred ones first; those of a zone are asked for together.

    All of them have the same number of GPUs: a job needs nodes that are alike.
    """

    name = "gcp"
    in_flight_s = 60.0

    def __init__(
        self,
        api: Api,
        settings: GcpSettings,
        record: LaunchRecord,
        pools: Sequence[Pool],
        smallest: int = 1,
        clock: Callable[[], float] = time.time,
        wanted: int = 1,
    ) -> None:
        super().__init__(settings, settings.times, pools, smallest, clock)
        self._api, self._settings, self._record = api, settings, record
        self._wanted = wanted
        self._script = startup_script(settings, record.host_key)
        self._off_s: dict[str, float] = {}  # when those that were taken lose their power, on our steady clock

    async def start(self) -> None:
        """Nothing has to be made before an instance: keys and script travel with the request."""

    # --- launching

    def _replay(self, tokens: Sequence[str]) -> None:
        try:
            settle(self._api, self._record, self._settings.times.operation_s)
        except ApiError as error:
            raise error.sorted from error

    def _launch(self, count: int, token: str) -> LaunchReply:
        got = self._late()
        held = any(not one.going for one in list(self._seen.values()))
        zones = by_zone(self._pools.open(self._steady()))
        for number, (zone, pools) in enumerate(zones.items()):
            missing = count - len(got)
            if missing <= 0 or self._closing:
                break
            least = min(self._smallest, missing) if not held and not got else 1
            try:
                new = self._bulk_insert(pools, missing, least, token, number)
            except ApiError as error:
                if not error.elsewhere:
                    if got:
                        break  # what came is reported; the same trouble comes again with the next request
                    raise error.sorted from error
                for pool in pools:
                    self._pools.failed(pool.instance_type, zone, str(error), self._steady())
                continue
            self._remember(pools, {one.pool.instance_type for one in new}, zone)
            got += new
        shortage = "" if got else self._pools.shortage(self._steady())
        return LaunchReply(tuple(got), max(0, count - len(got)), shortage, shortage)

    def _late(self) -> list[Instance]:
        """What earlier requests have brought whose answers were lost: they come before any new one."""
        if not self._record.open_requests():
            return []
        known = set(self._seen)
        self._replay(())
        self._look()
        return [one.instance for name, one in self._seen.items() if name not in known and not one.going]

    def _remember(self, asked: Sequence[Pool], gave: set[str], zone: str) -> None:
        """Those that gave are open; a better one that was passed over for them had nothing."""
        last = max((k for k, pool in enumerate(asked) if pool.instance_type in gave), default=-1)
        for pool in asked[: last + 1]:
            if pool.instance_type in gave:
                self._pools.gave(pool.instance_type, zone)
            else:
                self._pools.failed(
                    pool.instance_type, zone, f"{pool.instance_type} was passed over", self._steady()
                )

    def _bulk_insert(
        self, pools: Sequence[Pool], count: int, least: int, token: str, number: int
    ) -> list[Instance]:
        """Ask one zone, wait for the operation, and look what it brought."""
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
        insert(api, record, request, self._settings.times.operation_s)
        found, dark = seen_instances(api, record.owner, record.region)
        if (zone := pools[0].zone) in dark:  # what came is found by a later look
            raise ApiError("InstancesClient.aggregated_list", "backendError", f"cannot see {zone}", 503)
        rows = [row for row in found if row.labels.get(TOKEN_LABEL) == token]
        with self._lock:
            new = [row for row in rows if row.name not in self._seen]
            for row in new:
                self._note(row, token, self._clock())
        record.done(request)
        return [self._seen[row.name].instance for row in new]

    # --- looking

    def _ask_market(self) -> None:
        """What the advice service says of prices, and of how likely so many instances are."""
        for one in prospects(self._api, self._settings, self._wanted):
            key = one.pool.instance_type, one.pool.zone
            self._prices[key] = one.pool.spot_usd_per_hour
            if one.obtainability is not None:
                self._scores[key] = one.obtainability

    def _look(self) -> None:
        # Only those that were known before the question: an answer says nothing about later ones.
        with self._lock:
            known = [name for name, one in self._seen.items() if not one.ended]
        try:
            rows, dark = seen_instances(self._api, self._record.owner, self._record.region)
        except ApiError as error:
            raise error.sorted from error
        shown = {row.name for row in rows}
        with self._lock:
            for row in rows:
                self._note(row, row.labels.get(TOKEN_LABEL, ""))
            over = [name for name in set(known) - shown if self._seen[name].instance.pool.zone not in dark]
            for name in over:
                self._move(name, _ENDED)
            for pool in {self._seen[name].instance.pool for name in over if name not in self._given_back}:
                self._pools.failed(pool.instance_type, pool.zone, INTERRUPTED, self._steady())

    def notices(self) -> Mapping[str, Notice]:
        """Who has been told to power off, and not by us: it was taken, and works on while it has power."""
        ahead_s = self._clock() - self._steady()
        with self._lock:
            return {
                name: Notice(NoticeKind.INTERRUPTION, off_s + ahead_s)
                for name, off_s in self._off_s.items()
                if not self._seen[name].going
            }

    def _state(self, row: Any) -> InstanceState:
        """One that was taken is there until its power goes; called gone at once, its notice would be lost."""
        if row.status in _GOING and row.name not in self._given_back and not self._closing:
            now_s = self._steady()
            # It may have been told just after our last look.
            if now_s < self._off_s.setdefault(row.name, now_s + POWER_OFF_S - self._patience.describe_s):
                return InstanceState.RUNNING
        return _STATES.get(row.status, InstanceState.BOOTING)

    def _note(self, row: Any, token: str, born_s: float | None = None) -> None:
        state = self._state(row)
        if (known := self._seen.get(row.name)) is None:
            zone, machine = last_part(row.zone), last_part(row.machine_type)
            instance = Instance(
                id=str(row.id),
                name=row.name,
                job=self._record.job,
                token=token,
                pool=self._pools.of(machine, zone) or self._unlisted(machine, zone),
                state=state,
                # Hours are counted by our own clock; how old a stranger is, only the API can tell.
                launched_s=born_s or datetime.fromisoformat(row.creation_timestamp).timestamp(),
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

    def _unlisted(self, machine: str, zone: str) -> Pool:
        """The pool of an instance that was rented when the zone still offered it: at the price on demand."""
        usd = on_demand_usd_per_hour(self._settings, machine)
        return Pool(zone, machine, self._pools.all[0].gpus if self._pools.all else 1, usd, usd)

    def _move(self, name: str, state: InstanceState) -> None:
        """To a later state; an answer that is older than what we know changes nothing."""
        one = self._seen[name]
        order = list(InstanceState)
        if order.index(state) > order.index(one.instance.state):
            self._seen[name] = replace(one, instance=one.instance.moved(state))

    def _keys(self) -> tuple[str, str]:
        return self._record.client_key.private, self._record.host_key.public

    # --- ending

    def _terminate(self, names: Sequence[str]) -> None:
        try:
            for name in names:
                if (one := self._seen.get(name)) is not None:
                    delete(self._api, name, one.instance.pool.zone)
        except ApiError as error:
            raise error.sorted from error

    def _end(self) -> None:
        times = self._settings.times
        try:
            settle(self._api, self._record, times.operation_s)
            delete_until_gone(self._api, self._record.owner, times.close_s, self._record.region)
        except ApiError as error:
            with self._lock:
                held = sorted(name for name, one in self._seen.items() if not one.ended)
            raise in_doubt(error, held) from error
        with self._lock:
            for name in self._seen:
                self._move(name, _ENDED)

"""EC2 as a SpotProvider: launches by CreateFleet, the API's word for what lives, nothing left in the end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloud.aws.api import Api, ApiError
from cloud.aws.errors import Verdict, refused, verdict_of
from cloud.aws.event_queue import QueueWatch
from cloud.aws.instances import seen
from cloud.aws.launch_record import LaunchRecord, requests_folder, used_regions
from cloud.aws.marked import marked
from cloud.aws.region import Region, queue_region
from cloud.aws.requests import PoolPlan, fleet_request
from cloud.aws.settings import AwsSettings
from cloud.aws.shared import client_key, remove_launch
from cloud.aws.sweep import recent_requests, terminate_until_gone
from cloud.ended import mark_begun, mark_ended
from cloud.pools import INTERRUPTED
from cloud.private_file import write_private
from cloud.provider import CloudError, CredentialsError, MaybeStillRunningError
from cloud.rented import RentedProvider, Seen
from cloud.types import Instance, InstanceState, LaunchReply, Notice, NoticeKind, Pool

# An instance that a launch has named is in DescribeInstances within seconds; until then it is booting.
UNSEEN_FOR_S = 300.0
_ROUNDS = 6


class AwsProvider(RentedProvider):
    """One launch, in one of `regions` at a time: nodes talk over the network of their region.

    The first is the best. Another one is taken when every pool of the region rests and nothing is held there.
    `folder` keeps what a successor needs; `home` the user's SSH key.
    """

    name = "aws"
    in_flight_s = 90.0

    def __init__(
        self,
        regions: Sequence[Region],
        settings: AwsSettings,
        record: LaunchRecord,
        folder: Path,
        home: Path,
        smallest: int = 1,
        clock: Callable[[], float] = time.time,
        wanted: int = 0,
        gpus: int | None = None,
    ) -> None:
        """Placement scores are asked for `wanted` instances with `gpus` GPUs (None: any); 0: they are not."""
        plans = [plan for region in regions for plan in region.plans]
        super().__init__(settings, settings.times, [plan.pool for plan in plans], smallest, clock)
        self._regions, self._settings, self._record = tuple(regions), settings, record
        self._plans = {plan.pool: plan for plan in plans}
        self._folder, self._home = folder, home
        self._notices: dict[str, Notice] = {}
        self._wanted, self._gpus = wanted, gpus
        self._watch: QueueWatch | None = None
        self._client_key, self._public = "", ("", "")
        self._unsure: list[tuple[Region, Path]] = []  # requests of which every answer was lost

    async def start(self) -> None:
        """Key pair, security group, image and launch template: made, or found where they are there."""
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        mark_begun(self._folder)
        self._client_key, *public = client_key(self._home)
        self._public = public[0], public[1]
        self._prepare(self._regions[0])
        if self._settings.queue_url:
            api = Api(queue_region(self._settings.queue_url) or self._regions[0].name)
            self._watch = QueueWatch(api, self._settings.queue_url, False, self._seen.__contains__)
            self._watch.start()

    def _prepare(self, region: Region) -> None:
        region.prepare(self._record, self._settings, self._folder, self._public, self._seen.__contains__)

    # --- where we are

    def _used(self) -> list[Region]:
        """Where something of this launch may be."""
        names = used_regions(self._folder, self._record)
        return [region for region in self._regions if region.name in names]

    def _region_of(self, one: Seen) -> Region:
        zone = one.instance.pool.zone
        return next((region for region in self._regions if region.has(zone)), self._regions[0])

    def _held_in(self) -> Region | None:
        """The region that holds instances; of several, which only a crash can bring about, the fuller one."""
        held = [self._region_of(one) for one in list(self._seen.values()) if not one.going]
        return max(held, key=lambda region: (held.count(region), -self._regions.index(region)), default=None)

    def _open(self, region: Region) -> list[PoolPlan]:
        plans = [self._plans[pool] for pool in self._pools.open(self._steady())]
        return [plan for plan in plans if plan in region.plans]

    def _next_region(self) -> Region | None:
        """Where to ask now; None where there is no pool to be asked."""
        held = self._held_in()
        candidates = self._regions if held is None else (held,)
        return next((region for region in candidates if self._open(region)), None)

    def _askable(self) -> list[Pool]:
        held = self._held_in()
        return [plan.pool for region in self._regions if held in (None, region) for plan in region.plans]

    async def wait_for_capacity(self, timeout_s: float) -> None:
        """Until a pool's time of rest is over that may be asked then."""
        pause_s = self._pools.next_open_s(self._steady(), self._askable())
        await asyncio.sleep(min(timeout_s, pause_s if pause_s > 0 else self._patience.describe_s))

    # --- launching

    def _replay(self, tokens: Sequence[str]) -> None:
        self._unsure += [
            (region, path)
            for region in self._used()
            for path in recent_requests(self._folder, region.name)
            if path.name.rsplit("-", 1)[0] in tokens
        ]
        self._late()

    def _late(self) -> list[Instance]:
        """What earlier requests have brought whose answers were lost: they come before any new one."""
        known = set(self._seen)
        try:
            while self._unsure:
                self._replay_one(*self._unsure[0])
                del self._unsure[0]
        except ApiError as error:
            raise error.sorted from error
        return [one.instance for name, one in self._seen.items() if name not in known and not one.going]

    def _replay_one(self, region: Region, path: Path) -> None:
        try:
            reply = region.api.call("create_fleet", json.loads(path.read_text()))
        except ApiError as error:
            if error.verdict in (Verdict.CREDENTIALS, Verdict.WAIT):
                raise
            return  # refused for good: it has brought nothing
        for row in reply["Instances"]:
            for name in row["InstanceIds"]:
                if name not in self._seen:
                    self._born(region, row, name, path.name.rsplit("-", 1)[0])

    def _launch(self, count: int, token: str) -> LaunchReply:
        got = self._late()
        problem: CloudError | None = None
        for number in range(_ROUNDS * len(self._regions)):
            region, missing = self._next_region(), count - len(got)
            if region is None or missing <= 0 or self._closing:
                break
            plans = self._open(region)
            if not self._made_ready(region, plans):
                continue
            least = min(self._smallest, missing) if self._held_in() is None else 1
            request = fleet_request(
                self._record.owner, self._settings, plans, missing, least, token, number, region.template
            )
            # The request is on the disk before it is sent: whoever cleans up after us can repeat it.
            path = requests_folder(self._folder, region.name) / f"{token}-{number}.json"
            write_private(path, json.dumps(request))
            try:
                reply = region.api.call("create_fleet", request)
            except ApiError as error:
                if error.verdict is Verdict.WAIT:
                    self._unsure.append((region, path))
                if error.verdict is not Verdict.NEXT_POOL:
                    problem = error.sorted
                    break
                self._close_pools(plans, str(error))
                continue
            new = [
                self._born(region, row, name, token)
                for row in reply["Instances"]
                for name in row["InstanceIds"]
            ]
            got += new
            problem = self._learn(reply, plans, bool(new)) or problem
            if problem is not None:
                break
        if problem is not None and not got:
            raise problem
        shortage = "" if got else self._pools.shortage(self._steady(), self._askable())
        return LaunchReply(tuple(got), max(0, count - len(got)), str(problem or shortage), shortage)

    def _made_ready(self, region: Region, plans: Sequence[PoolPlan]) -> bool:
        """Key pair, group and template are there. A region that refuses them is like one without capacity."""
        try:
            self._prepare(region)
        except CredentialsError:
            raise
        except CloudError as error:
            if len(self._regions) == 1:
                raise
            self._close_pools(plans, f"{region.name}: {error}")
            return False
        return True

    def _born(self, region: Region, row: Mapping[str, Any], name: str, token: str) -> Instance:
        overrides = row.get("LaunchTemplateAndOverrides", {}).get("Overrides", {})
        kind = row.get("InstanceType", overrides.get("InstanceType", ""))
        plan = region.plan_of(kind, overrides.get("SubnetId", "")) or region.plans[0]
        self._pools.gave(kind, plan.pool.zone)
        instance = Instance(
            name, name, self._record.job, token, plan.pool, InstanceState.BOOTING, self._clock()
        )
        with self._lock:
            self._seen[name] = Seen(instance, "", "", self._settings.ssh_port)
        return instance

    def _learn(self, reply: Mapping[str, Any], plans: Sequence[PoolPlan], some: bool) -> CloudError | None:
        """Close the pools that had nothing; the error that no other pool can help against, if any."""
        now_s = self._steady()
        rows = reply.get("Errors", [])
        if not rows and not some:
            self._close_pools(plans, "CreateFleet brought nothing and gave no reason")
        for row in rows:
            overrides = row.get("LaunchTemplateAndOverrides", {}).get("Overrides", {})
            code, kind = row.get("ErrorCode", "Unknown"), overrides.get("InstanceType", "")
            verdict = verdict_of(code)
            if verdict in (Verdict.NEXT_POOL, Verdict.WAIT, Verdict.NOT_FOUND):
                for plan in plans:
                    if (
                        plan.pool.instance_type == kind
                        and overrides.get("SubnetId", plan.subnet) == plan.subnet
                    ):
                        self._pools.failed(kind, plan.pool.zone, code, now_s)
            else:
                return refused(verdict, "create_fleet", code, row.get("ErrorMessage", ""), kind)
        return None

    def _close_pools(self, plans: Sequence[PoolPlan], why: str) -> None:
        for plan in plans:
            self._pools.failed(plan.pool.instance_type, plan.pool.zone, why, self._steady())

    # --- looking

    def _ask_market(self) -> None:
        """Prices and scores of the regions that are used."""
        try:
            for region in self._used():
                prices, scores = region.ask_market(self._settings, self._wanted, self._gpus)
                self._prices.update(prices)
                self._scores.update(scores)
        except ApiError as error:
            raise error.sorted from error

    def _look(self) -> None:
        rows: list[dict[str, Any]] = []
        notices: dict[str, Notice] = {}
        try:
            for region in self._used():
                mine = self._rows(region, self._record.owner.filters())
                shown = {row["InstanceId"] for row in mine}
                with self._lock:
                    unseen = [
                        one
                        for name, one in self._seen.items()
                        if name not in shown and not one.ended and self._region_of(one) is region
                    ]
                mine += [row for one in unseen for row in self._ask_about(region, one)]
                running = [row["InstanceId"] for row in mine if row["State"]["Name"] == "running"]
                notices |= self._announced(region, running)
                rows += mine
        except ApiError as error:
            raise error.sorted from error
        self._notices = notices
        with self._lock:
            for row in rows:
                self._note(row)
        self._end_strays()

    def _end_strays(self) -> None:
        """A request whose answer was lost may have brought nodes to a region that has been left since."""
        home = self._held_in()
        self._terminate(
            [
                name
                for name, one in list(self._seen.items())
                if home is not None and not one.going and self._region_of(one) is not home
            ]
        )

    def _announced(self, region: Region, running: Sequence[str]) -> dict[str, Notice]:
        """Whose end is announced: by the queue, and by a spot request that EC2 has marked."""
        if not running:
            return {}
        marks = marked(region.api, running)
        heard = {**region.heard(), **(self._watch.heard() if self._watch else {})}
        # An event has the time of the warning itself, the request's mark that of its last update.
        told = {name: notice for name, notice in heard.items() if name in running}
        hints = {name for name, notice in told.items() if notice.kind is NoticeKind.REBALANCE}
        return {
            **told,
            **{name: one for name, one in marks.items() if name not in told or name in hints},
        }

    def notices(self) -> Mapping[str, Notice]:
        """What the API and the queue have announced, by name."""
        return self._notices

    def _note(self, row: Mapping[str, Any]) -> None:
        known = self._seen.get(row["InstanceId"])
        pool = self._pools.of(
            row.get("InstanceType", ""), row.get("Placement", {}).get("AvailabilityZone", "")
        )
        one = seen(row, pool or (known.instance.pool if known else None), self._settings.ssh_port)
        if known is not None:
            if known.ended or (
                known.instance.state is InstanceState.TERMINATING
                and one.instance.state is not InstanceState.TERMINATED
            ):
                return  # an answer from before we knew better
            one = replace(one, instance=replace(one.instance, launched_s=known.instance.launched_s))
        if one.taken and one.ended:
            self._pools.failed(
                one.instance.pool.instance_type, one.instance.pool.zone, INTERRUPTED, self._steady()
            )
        self._seen[one.instance.id] = one

    def _rows(self, region: Region, filters: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        reservations = region.api.pages("describe_instances", {"Filters": list(filters)}, "Reservations")
        return [row for reservation in reservations for row in reservation["Instances"]]

    def _ask_about(self, region: Region, one: Seen) -> list[dict[str, Any]]:
        """An instance that the sweep by tag does not show: by its id."""
        try:
            reply = region.api.call("describe_instances", {"InstanceIds": [one.instance.id]})
        except ApiError as error:
            if error.verdict is not Verdict.NOT_FOUND:
                raise
            if self._clock() - one.instance.launched_s > UNSEEN_FOR_S:
                ended = one.instance.moved(InstanceState.TERMINATED)
                self._seen[one.instance.id] = replace(one, instance=ended)
            return []
        return [row for reservation in reply["Reservations"] for row in reservation["Instances"]]

    def _keys(self) -> tuple[str, str]:
        return self._client_key, self._record.host_key.public

    # --- ending

    def _terminate(self, names: Sequence[str]) -> None:
        for name in names:  # one by one: EC2 refuses all of them if one is unknown
            one = self._seen.get(name)
            region = self._regions[0] if one is None else self._region_of(one)
            try:
                region.api.call("terminate_instances", {"InstanceIds": [name]})
            except ApiError as error:
                if error.verdict is not Verdict.NOT_FOUND:
                    raise error.sorted from error

    def _end(self) -> None:
        doubts: list[str] = []
        for region in self._used():
            try:
                self._end_in(region)
            except MaybeStillRunningError as error:  # what is in the other regions costs money, too
                doubts.append(str(error))
            finally:
                region.close()
        if self._watch is not None:
            self._watch.stop()
        if doubts:
            raise MaybeStillRunningError("; ".join(doubts))
        if not self._in_doubt:
            mark_ended(self._folder)

    def _end_in(self, region: Region) -> None:
        with self._lock:
            known = {
                name for name, one in self._seen.items() if not one.ended and self._region_of(one) is region
            }
        rows = terminate_until_gone(region.api, self._record.owner, known, self._settings.times.close_s)
        with self._lock:
            for row in rows:
                self._note(row)
            for name in known - {row["InstanceId"] for row in rows}:
                ended = replace(self._seen[name].instance, state=InstanceState.TERMINATED)
                self._seen[name] = replace(self._seen[name], instance=ended)
        remove_launch(region.api, self._record.owner, self._settings.placement_group, self._record.events)

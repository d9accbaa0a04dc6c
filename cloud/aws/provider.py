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
from cloud.aws.instances import seen
from cloud.aws.market import TYPES_FOR_SCORES, placement_scores, spot_prices, subnets_by_zone
from cloud.aws.requests import PoolPlan, fleet_request
from cloud.aws.settings import AwsSettings
from cloud.aws.shared import (
    LaunchRecord,
    client_key,
    ensure_group,
    ensure_key_pair,
    ensure_template,
    image_id,
    mark_begun,
    mark_ended,
    remove_launch,
)
from cloud.aws.sweep import recent_requests, terminate_until_gone
from cloud.pools import INTERRUPTED
from cloud.private_file import write_private
from cloud.provider import CloudError
from cloud.rented import RentedProvider, Seen
from cloud.types import Instance, InstanceState, LaunchReply, Notice, NoticeKind

# An instance that a launch has named is in DescribeInstances within seconds; until then it is booting.
UNSEEN_FOR_S = 300.0
NOTICE_S = 120.0
_ROUNDS = 6


class AwsProvider(RentedProvider):
    """One launch in one region. `folder` keeps what a successor needs; `home` the user's SSH key."""

    name = "aws"
    in_flight_s = 90.0

    def __init__(
        self,
        api: Api,
        settings: AwsSettings,
        record: LaunchRecord,
        plans: Sequence[PoolPlan],
        vpc: str,
        folder: Path,
        home: Path,
        smallest: int = 1,
        clock: Callable[[], float] = time.time,
        wanted: int = 0,
    ) -> None:
        """`wanted`: for how many instances placement scores are asked, 0: they are not."""
        super().__init__(settings, settings.times, [plan.pool for plan in plans], smallest, clock)
        self._api, self._settings, self._record = api, settings, record
        self._plans = {plan.pool: plan for plan in plans}
        self._vpc, self._folder, self._home = vpc, folder, home
        self._notices: dict[str, Notice] = {}
        self._template = ""
        self._wanted = wanted
        self._client_key = ""

    async def start(self) -> None:
        """Key pair, security group, image and launch template: made, or found where they are there."""
        await asyncio.to_thread(self._prepare)

    def _prepare(self) -> None:
        api, settings = self._api, self._settings
        mark_begun(self._folder)
        try:
            self._client_key, public, fingerprint = client_key(self._home)
            key_name = ensure_key_pair(api, public, fingerprint)
            group = ensure_group(api, settings, self._vpc)
            image = image_id(api, settings)
            self._template = ensure_template(api, self._record, settings, image, key_name, group)
        except ApiError as error:
            raise error.sorted from error

    # --- launching

    def _replay(self, tokens: Sequence[str]) -> None:
        try:
            for path in recent_requests(self._folder):
                token = path.name.rsplit("-", 1)[0]
                if token not in tokens:
                    continue
                try:
                    reply = self._api.call("create_fleet", json.loads(path.read_text()))
                except ApiError as error:
                    if error.verdict in (Verdict.CREDENTIALS, Verdict.WAIT):
                        raise
                    continue  # refused for good: it has brought nothing
                for row in reply["Instances"]:
                    for name in row["InstanceIds"]:
                        if name not in self._seen:
                            self._born(row, name, token)
        except ApiError as error:
            raise error.sorted from error

    def _launch(self, count: int, token: str) -> LaunchReply:
        got: list[Instance] = []
        problem: CloudError | None = None
        held = sum(not one.ended for one in list(self._seen.values()))
        for number in range(_ROUNDS):
            plans = [self._plans[pool] for pool in self._pools.open(self._steady())]
            missing = count - len(got)
            if not plans or not missing or self._closing:
                break
            least = min(self._smallest, missing) if not held and not got else 1
            request = fleet_request(
                self._record.owner, self._settings, plans, missing, least, token, number, self._template
            )
            # The request is on the disk before it is sent: whoever cleans up after us can repeat it.
            write_private(self._intent(token, number), json.dumps(request))
            try:
                reply = self._api.call("create_fleet", request)
            except ApiError as error:
                if error.verdict is not Verdict.NEXT_POOL:
                    problem = error.sorted
                    break
                self._close_pools(plans, str(error))
                continue
            new = [self._born(row, name, token) for row in reply["Instances"] for name in row["InstanceIds"]]
            got += new
            problem = self._learn(reply, plans, bool(new)) or problem
            if problem is not None:
                break
        if problem is not None and not got:
            raise problem
        shortage = "" if got else self._pools.shortage(self._steady())
        return LaunchReply(tuple(got), count - len(got), str(problem or shortage), shortage)

    def _intent(self, token: str, number: int) -> Path:
        return self._folder / "requests" / f"{token}-{number}.json"

    def _born(self, row: Mapping[str, Any], name: str, token: str) -> Instance:
        overrides = row.get("LaunchTemplateAndOverrides", {}).get("Overrides", {})
        kind = row.get("InstanceType", overrides.get("InstanceType", ""))
        plans = list(self._plans.values())
        plan = next(
            (
                plan for plan in plans
                if plan.pool.instance_type == kind and overrides.get("SubnetId", plan.subnet) == plan.subnet
            ),
            plans[0],
        )  # fmt: skip
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
        """Prices, and the scores of the same question as before the launch: new ones are rationed."""
        types = self._settings.instance_types
        try:
            self._prices.update(spot_prices(self._api, types))
            if self._wanted and len(types) >= TYPES_FOR_SCORES:
                _, zone_ids, _ = subnets_by_zone(self._api, self._settings)
                scores = placement_scores(self._api, types, self._wanted, zone_ids)
                for pool in self._pools.all:
                    if pool.zone in scores:
                        self._scores[pool.instance_type, pool.zone] = float(scores[pool.zone])
        except ApiError as error:
            raise error.sorted from error

    def _look(self) -> None:
        try:
            rows = self._rows(self._record.owner.filters())
            shown = {row["InstanceId"] for row in rows}
            with self._lock:
                missing = [one for name, one in self._seen.items() if name not in shown and not one.ended]
            rows += [row for one in missing for row in self._ask_about(one)]
            running = [row["InstanceId"] for row in rows if row["State"]["Name"] == "running"]
            self._notices = self._marked(running)
        except ApiError as error:
            raise error.sorted from error
        with self._lock:
            for row in rows:
                self._note(row)

    def _marked(self, running: Sequence[str]) -> dict[str, Notice]:
        """Whose spot request says that EC2 will end it."""
        if not running:
            return {}
        filters = [
            {"Name": "instance-id", "Values": list(running)},
            {"Name": "status-code", "Values": ["marked-for-termination"]},
        ]
        rows = self._api.pages(
            "describe_spot_instance_requests", {"Filters": filters}, "SpotInstanceRequests"
        )
        return {
            row["InstanceId"]: Notice(
                NoticeKind.INTERRUPTION, row["Status"]["UpdateTime"].timestamp() + NOTICE_S
            )
            for row in rows
        }

    def notices(self) -> Mapping[str, Notice]:
        """What the API has announced, by name."""
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

    def _rows(self, filters: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        reservations = self._api.pages("describe_instances", {"Filters": list(filters)}, "Reservations")
        return [row for reservation in reservations for row in reservation["Instances"]]

    def _ask_about(self, one: Seen) -> list[dict[str, Any]]:
        """An instance that the sweep by tag does not show: by its id."""
        try:
            reply = self._api.call("describe_instances", {"InstanceIds": [one.instance.id]})
        except ApiError as error:
            if error.verdict is not Verdict.NOT_FOUND:
                raise
            if self._clock() - one.instance.launched_s > UNSEEN_FOR_S:
                self._seen[one.instance.id] = replace(
                    one, instance=one.instance.moved(InstanceState.TERMINATED)
                )
            return []
        return [row for reservation in reply["Reservations"] for row in reservation["Instances"]]

    def _keys(self) -> tuple[str, str]:
        return self._client_key, self._record.host_key.public

    # --- ending

    def _terminate(self, names: Sequence[str]) -> None:
        for name in names:  # one by one: EC2 refuses all of them if one is unknown
            try:
                self._api.call("terminate_instances", {"InstanceIds": [name]})
            except ApiError as error:
                if error.verdict is not Verdict.NOT_FOUND:
                    raise error.sorted from error

    def _end(self) -> None:
        with self._lock:
            known = {name for name, one in self._seen.items() if not one.ended}
        rows = terminate_until_gone(self._api, self._record.owner, known, self._settings.times.close_s)
        with self._lock:
            for row in rows:
                self._note(row)
            for name in known - {row["InstanceId"] for row in rows}:
                one = self._seen[name]
                self._seen[name] = replace(
                    one, instance=replace(one.instance, state=InstanceState.TERMINATED)
                )
        remove_launch(self._api, self._record.owner, self._settings.placement_group)
        mark_ended(self._folder)

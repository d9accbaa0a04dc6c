"""Compute Engine on this machine. Every request, and every answer of its own, follows the discovery document.

What it adds are the rules that the document does not tell: request ids are honoured, operations take their
time, capacity is by zone, a spot instance with termination action DELETE disappears when it is preempted.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.cloud.gcp.discovery import Discovery

PROJECT, REGION = "project-1", "us-central1"
ZONES = (f"{REGION}-a", f"{REGION}-b")
MACHINE_TYPE = "g2-standard-8"
# The machine types that there are: the model of their GPUs, how many, and a spot price in the first zone.
MACHINES = {
    MACHINE_TYPE: ("nvidia-l4", 1, 0.30),
    "g2-standard-12": ("nvidia-l4", 1, 0.36),
    "g2-standard-24": ("nvidia-l4", 2, 0.70),
    "a2-highgpu-4g": ("nvidia-tesla-a100", 4, 5.20),
}
Answer = tuple[int, dict[str, Any]]


@dataclass
class Fault:
    """The next `times` calls of `method` (`*`: any) fail: as an HTTP error, or `inside` their operation.

    With `after` the call is carried out first and its answer lost.
    """

    method: str
    reason: str
    status: int = 400
    message: str = "injected"
    times: int = 1
    inside: bool = False
    after: bool = False


@dataclass
class FakeCompute:
    """The API's state and the knobs that tests turn. `served` makes it listen."""

    capacity: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ZONES, 100))
    out_of: set[tuple[str, str]] = field(default_factory=set)  # (zone, machine type) without any
    faults: list[Fault] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    operation_s: float = 0.05
    stopping_s: float = 0.0  # so long a deleted instance is shown, and billed
    preempted_per_day: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ZONES, 0.05))
    dearer: float = 1.0  # what prices are multiplied by
    clock: Callable[[], float] = time.time  # by which instances reach their longest time
    out_of_reach: set[str] = field(default_factory=set)  # zones of which lists say that they cannot be read
    # Called with an instance when it has been made, and when it is gone; may add to what the API shows of it.
    on_launch: Callable[[dict[str, Any]], None] = lambda instance: None
    on_end: Callable[[dict[str, Any]], None] = lambda instance: None
    hold: Callable[[str], None] = lambda method: None  # called before a method is carried out

    def __post_init__(self) -> None:
        self.discovery = Discovery()
        self.instances: dict[str, dict[str, Any]] = {}
        self.made: dict[str, dict[str, Any]] = {}  # all that there ever were
        self.operations: dict[str, dict[str, Any]] = {}
        self._by_request: dict[str, str] = {}
        self._ids = itertools.count(7_000_000_000_000_000_000)
        self.lock = threading.RLock()
        self.base = ""

    # --- what tests do

    def live(self) -> list[str]:
        """The names of the instances that cost money."""
        self._end_overdue()
        with self.lock:
            return sorted(self.instances)

    def preempt(self, name: str) -> None:
        """Compute Engine takes an instance back, and remembers that it did."""
        with self.lock:
            instance = self.instances.pop(name)
            self._operation("compute.instances.preempted", zone=_last(instance["zone"]), target=name)
        self.on_end(instance)

    def _end_overdue(self) -> None:
        """Delete what has run for its `maxRunDuration`: looked at when somebody asks, not by a timer."""
        with self.lock:
            now_s = self.clock()
            overdue = [self.instances.pop(n) for n, one in [*self.instances.items()] if now_s >= _ends_s(one)]
        for instance in overdue:
            self.on_end(instance)

    # --- the API

    def handle(self, verb: str, url: str, raw: bytes) -> Answer:
        """One request, checked; then the answer, checked."""
        parts = urllib.parse.urlsplit(url)
        found = self.discovery.find(verb, parts.path)
        if found is None:
            self.violations.append(f"{verb} {parts.path}: no such method")
            return _error(404, "notFound", f"no such method: {verb} {parts.path}")
        method, path = found
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        body = json.loads(raw) if raw else None
        if faults := self.discovery.faults(method, path, query, body):
            self.violations += [f"{method.id}: {fault}" for fault in faults]
            return _error(400, "invalid", "; ".join(faults)[:900])
        self._end_overdue()
        self.calls.append(method.id)
        status, answer = self._carry_out(method.id, path, query, body or {})
        if status == 200 and (faults := self.discovery.answer_faults(method, answer)):
            self.violations += [f"answer of {method.id}: {fault}" for fault in faults]
        return status, answer

    def _carry_out(
        self, method: str, path: Mapping[str, str], query: Mapping[str, str], body: dict[str, Any]
    ) -> Answer:
        self.hold(method)
        fault = next((one for one in self.faults if one.method in (method, "*") and one.times > 0), None)
        if fault is not None:
            fault.times -= 1
        if fault is not None and not fault.inside and not fault.after:
            return _error(fault.status, fault.reason, fault.message)
        handler = getattr(self, "_" + re.sub(r"\W", "_", method), None)
        if handler is None:
            return _error(501, "notImplemented", f"the stand-in has no {method}")
        request_id = query.get("requestId", "")
        if request_id in self._by_request:
            answer = 200, self._shown(self._by_request[request_id])
        else:
            answer = handler({**path, **query}, body, fault if fault is not None and fault.inside else None)
            if request_id and answer[0] == 200:
                self._by_request[request_id] = answer[1]["name"]
        if fault is not None and fault.after:
            return _error(fault.status, fault.reason, fault.message)
        return answer

    def _regionInstances_bulkInsert(
        self, asked: Mapping[str, str], body: dict[str, Any], fault: Fault | None
    ) -> Answer:
        count, least = int(body["count"]), int(body.get("minCount", body["count"]))
        zones = [_last(zone) for zone in body["locationPolicy"]["locations"]]
        error = None if fault is None else {"code": fault.reason, "message": fault.message}
        made = []
        with self.lock:
            zone = max(zones, key=lambda zone: self.capacity.get(zone, 0))
            there = min(count, self.capacity.get(zone, 0))
            machine = next((name for name in _types(body) if (zone, name) not in self.out_of), None)
            if machine is None:
                there = 0
            if error is None and there < least:
                error = {
                    "code": "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
                    "message": f"The zone '{zone}' does not have enough resources available.",
                }
            if error is None and machine is not None:
                self.capacity[zone] -= there
                made = [self._make(zone, body, machine, number) for number in range(1, there + 1)]
            answer = self._operation("bulkInsert", region=asked["region"], error=error)
        for instance in made:
            self.on_launch(instance)
        return 200, answer

    def _make(self, zone: str, body: dict[str, Any], machine: str, number: int) -> dict[str, Any]:
        properties = body["instanceProperties"]
        marks = re.search(r"#+", body["namePattern"])
        assert marks is not None
        name = body["namePattern"].replace(marks[0], str(number).zfill(len(marks[0])))
        scope = f"{self.base}projects/{PROJECT}/zones/{zone}"
        instance = {
            "kind": "compute#instance",
            "id": str(next(self._ids)),
            "name": name,
            "creationTimestamp": _now(),
            "status": "RUNNING",
            "zone": scope,
            "selfLink": f"{scope}/instances/{name}",
            "machineType": f"{scope}/machineTypes/{machine}",
            "labels": dict(properties["labels"]),
            "scheduling": properties["scheduling"],
            "serviceAccounts": properties.get("serviceAccounts", []),
            "metadata": {
                "kind": "compute#metadata",
                "items": [dict(item) for item in properties["metadata"]["items"]],
            },
            "networkInterfaces": [
                {
                    "kind": "compute#networkInterface",
                    "name": "nic0",
                    "networkIP": "127.0.0.1",
                    "accessConfigs": [
                        {"kind": "compute#accessConfig", "type": "ONE_TO_ONE_NAT", "natIP": "127.0.0.1"}
                    ],
                }
            ],
        }
        self.instances[name] = self.made[name] = instance
        return instance

    def _instances_aggregatedList(
        self, asked: Mapping[str, str], body: dict[str, Any], fault: Fault | None
    ) -> Answer:
        with self.lock:
            wanted = re.findall(r"labels\.([\w-]+)\s*=\s*([\w-]+)", asked.get("filter", ""))
            present = re.findall(r"labels\.([\w-]+):\*", asked.get("filter", ""))
            chosen = [
                one
                for one in self.instances.values()
                if all(name in one["labels"] for name in present)
                and all(one["labels"].get(key) == value for key, value in wanted)
            ]
            items = {
                f"zones/{zone}": {"instances": here}
                for zone in ZONES
                if (here := [one for one in chosen if _last(one["zone"]) == zone])
            }
            for zone in self.out_of_reach:
                said = {"code": "UNREACHABLE", "message": f"The zone '{zone}' could not be reached."}
                items[f"zones/{zone}"] = {"warning": said}
        return 200, {"kind": "compute#instanceAggregatedList", "items": items}

    def _instances_delete(
        self, asked: Mapping[str, str], body: dict[str, Any], fault: Fault | None
    ) -> Answer:
        with self.lock:
            instance = self.instances.get(asked["instance"])
            if instance is None:
                return _error(404, "notFound", f"The resource '{asked['instance']}' was not found")
            if fault is not None:  # it was accepted, and came to nothing
                error = {"code": fault.reason, "message": fault.message}
                return 200, self._operation("delete", zone=asked["zone"], error=error)
            if self.stopping_s:
                instance["status"] = "STOPPING"
                timer = threading.Timer(self.stopping_s, self.instances.pop, [asked["instance"], None])
                timer.daemon = True
                timer.start()
            else:
                del self.instances[asked["instance"]]
            answer = self._operation("delete", zone=asked["zone"], target=asked["instance"])
        self.on_end(instance)
        return 200, answer

    def _machineTypes_aggregatedList(
        self, asked: Mapping[str, str], body: dict[str, Any], fault: Fault | None
    ) -> Answer:
        name = re.findall(r'name = "([\w-]+)"', asked.get("filter", ""))[0]
        items = {}
        if name in MACHINES:
            model, count, _ = MACHINES[name]
            cards = [{"guestAcceleratorType": model, "guestAcceleratorCount": count}]
            row = {"kind": "compute#machineType", "name": name, "accelerators": cards}
            items = {f"zones/{zone}": {"machineTypes": [row]} for zone in ZONES}
        return 200, {"kind": "compute#machineTypeAggregatedList", "items": items}

    def _advice_capacityHistory(
        self, asked: Mapping[str, str], body: dict[str, Any], fault: Fault | None
    ) -> Answer:
        day = {"startTime": "2026-11-22T00:00:00Z", "endTime": "2026-11-23T00:00:00Z"}
        zone = _last(body["locationPolicy"]["location"])
        usd = MACHINES[body["instanceProperties"]["machineType"]][2] + 0.01 * ZONES.index(zone)
        usd *= self.dearer
        price = {"currencyCode": "USD", "units": str(int(usd)), "nanos": round(usd % 1 * 1e9)}
        return 200, {
            "machineType": body["instanceProperties"]["machineType"],
            "location": body["locationPolicy"]["location"],
            "preemptionHistory": [{"interval": day, "preemptionRate": self.preempted_per_day[zone]}],
            "priceHistory": [{"interval": day, "listPrice": price}],
        }

    def _advice_capacity(self, asked: Mapping[str, str], body: dict[str, Any], fault: Fault | None) -> Answer:
        selections = body["instanceFlexibilityPolicy"]["instanceSelections"].values()
        types = [name for selection in selections for name in selection["machineTypes"]]
        some = {"instanceCount": body["size"], "provisioningModel": "SPOT"}
        shards = [{**some, "zone": zone, "machineType": name} for zone in ZONES for name in types]
        scores = {"obtainability": 0.7, "estimatedUptime": "7200s"}
        return 200, {"recommendations": [{"scores": scores, "shards": shards}]}

    def _zoneOperations_list(
        self, asked: Mapping[str, str], body: dict[str, Any], fault: Fault | None
    ) -> Answer:
        kind = re.search(r'operationType\s*=\s*"([\w.]+)"', asked.get("filter", ""))
        with self.lock:
            items = [
                self._shown(name)
                for name, operation in self.operations.items()
                if _last(operation.get("zone", "")) == asked["zone"]
                and (kind is None or operation["operationType"] == kind[1])
            ]
        return 200, {"kind": "compute#operationList", "items": items}

    def _regionOperations_wait(
        self, asked: Mapping[str, str], body: dict[str, Any], fault: Fault | None
    ) -> Answer:
        if asked["operation"] not in self.operations:
            return _error(404, "notFound", f"The resource '{asked['operation']}' was not found")
        time.sleep(max(0.0, self.operations[asked["operation"]]["_done_s"] - time.monotonic()))
        return 200, self._shown(asked["operation"])

    _zoneOperations_wait = _regionOperations_wait

    def _operation(
        self, kind: str, *, zone: str = "", region: str = "", target: str = "", error: Any = None
    ) -> dict[str, Any]:
        name = f"operation-{next(self._ids)}"
        scope = f"{self.base}projects/{PROJECT}/" + (f"zones/{zone}" if zone else f"regions/{region}")
        self.operations[name] = {
            "kind": "compute#operation",
            "id": str(next(self._ids)),
            "name": name,
            "operationType": kind,
            "targetLink": f"{scope}/instances/{target}" if target else scope,
            "insertTime": _now(),
            "selfLink": f"{scope}/operations/{name}",
            **({"zone": scope} if zone else {"region": scope}),
            "_done_s": time.monotonic() + self.operation_s,
            "_error": error,
        }
        return self._shown(name)

    def _shown(self, name: str) -> dict[str, Any]:
        operation = self.operations[name]
        shown = {key: value for key, value in operation.items() if not key.startswith("_")}
        if time.monotonic() < operation["_done_s"]:
            return shown | {"status": "RUNNING", "progress": 0}
        shown |= {"status": "DONE", "progress": 100, "endTime": _now()}
        if operation["_error"] is not None:
            shown |= {"error": {"errors": [operation["_error"]]}, "httpErrorStatusCode": 503}
        return shown


def _ends_s(instance: Mapping[str, Any]) -> float:
    """When an instance has run for its longest time, in Unix seconds."""
    born_s = datetime.fromisoformat(instance["creationTimestamp"]).timestamp()
    return born_s + float(instance["scheduling"]["maxRunDuration"]["seconds"])


def _types(body: Mapping[str, Any]) -> list[str]:
    """The machine types that a bulkInsert would take, in this order: what is named in one place only."""
    selections = body.get("instanceFlexibilityPolicy", {}).get("instanceSelections", {})
    named = body["instanceProperties"].get("machineType")
    if (named is None) == (not selections):
        return []
    ranked = sorted(selections.values(), key=lambda selection: int(selection.get("rank", 0)))
    return [named] if named else [name for selection in ranked for name in selection["machineTypes"]]


def _error(status: int, reason: str, message: str) -> Answer:
    row = {"message": message, "domain": "global", "reason": reason}
    return status, {"error": {"code": status, "message": message, "errors": [row]}}


def _last(url: str) -> str:
    return url.rsplit("/", 1)[-1]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

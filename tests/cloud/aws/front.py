"""EC2 on this machine: moto in this process behind a front that knows what moto does not.

Every request is checked by botocore's ParamValidator; answers of ours are made by moto's serializer from
botocore's service model, so both directions follow the model. The front adds client tokens, capacity by pool,
injected errors, eventual consistency, interruptions, placement scores, quotas and the image parameter.
"""

from __future__ import annotations

import io
import os
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.cloud.aws.answers import REGION, RefusedCall, error, json_error, region_of, send
from tests.cloud.aws.services import Services

ACCOUNT = "123456789012"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
TOKENED = ("RunInstances", "CreateFleet", "CreateLaunchTemplate")


@dataclass
class Fault:
    """The next `times` calls of `action` fail; with `after` they are carried out and the answer is lost."""

    action: str
    code: str
    message: str = "injected"
    status: int = 400
    times: int = 1
    after: bool = False


@dataclass
class Front:
    """The WSGI application, and the knobs that tests turn."""

    faults: list[Fault] = field(default_factory=list)
    capacity: dict[tuple[str, str], int] = field(default_factory=dict)
    default_capacity: int = 10**6
    prices: dict[tuple[str, str], float] = field(default_factory=dict)  # USD an hour, 0: no spot; else 0.2
    marked: dict[str, float] = field(default_factory=dict)  # spot requests marked for termination, and when
    quota_vcpus: float = 10**6
    invisible_s: float = 0.0
    shutting_down_s: float = 0.0
    scores: dict[str, int] = field(default_factory=dict)  # by region, instead of what the capacity says
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    called: list[str] = field(default_factory=list)  # the region of each
    # Called with moto's instance when a fleet has brought it, and when it ends.
    on_launch: Callable[[Any], None] = lambda instance: None
    on_end: Callable[[Any], None] = lambda instance: None
    hold: Callable[[str], None] = lambda action: None  # called before an action is carried out
    hold_after: Callable[[str], None] = lambda action: None  # and before its answer goes out

    def __post_init__(self) -> None:
        os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
        from moto.core.utils import get_service_model
        from moto.ec2 import ec2_backends
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self._inner = DomainDispatcherApplication(create_backend_app)
        self._model = get_service_model("ec2")
        self.backends = ec2_backends[ACCOUNT]
        self.backend = self.backends[REGION]
        self.services = Services(ACCOUNT)
        self._tokens: dict[tuple[str, str, str], tuple[str, bytes]] = {}
        self._born_s: dict[str, float] = {}
        self._ending_s: dict[str, float] = {}
        self._groups: dict[str, dict[str, Any]] = {}
        self._lock = threading.RLock()

    # --- for tests

    def live(self) -> list[Any]:
        """moto's instances that cost money."""
        return [one for one in self._instances() if one._state.name in ("pending", "running")]

    def _instances(self) -> list[Any]:
        return [one for name in list(self.backends) for one in self.backends[name].all_instances()]

    def instance(self, name: str) -> Any:
        """moto's instance, wherever it is."""
        return next(one for one in self._instances() if one.id == name)

    def announce(self, name: str, kind: str) -> None:
        """EventBridge has an event."""
        self.services.announce(self.instance(name).ec2_backend.region_name, name, kind)

    def interrupt(self, name: str) -> None:
        """EC2 takes the instance back now: what an account sees after the two minutes."""
        instance = self.instance(name)
        self.backends[instance.ec2_backend.region_name].terminate_instances([name])
        instance.state_reason.code = "Server.SpotInstanceTermination"
        instance.state_reason.message = "Server.SpotInstanceTermination: Spot instance termination"
        self.on_end(instance)

    def fault(self, action: str, code: str, **options: Any) -> Fault:
        """The next calls of this action fail."""
        self.faults.append(Fault(action, code, **options))
        return self.faults[-1]

    def actions(self, name: str) -> list[dict[str, Any]]:
        """The arguments of every call of one action so far."""
        return [arguments for action, arguments in self.calls if action == name]

    def regions_of(self, name: str) -> list[str]:
        """To which regions the calls of one action went."""
        return [region for (action, _), region in zip(self.calls, self.called, strict=True) if action == name]

    # --- WSGI

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        raw = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(raw)
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        if target:
            return self._json(target, raw, environ, start)
        form = dict(urllib.parse.parse_qsl(raw.decode(), keep_blank_values=True))
        try:
            return send(start, 200, self._ec2(form.get("Action", ""), form, environ))
        except RefusedCall as refused:
            return send(start, refused.status, error(refused.code, refused.message))

    def _ec2(self, action: str, form: dict[str, str], environ: dict[str, Any]) -> bytes:
        from botocore.validate import ParamValidator
        from moto.core.parse import EC2QueryParser

        if action not in self._model.operation_names:
            raise RefusedCall("InvalidAction", action)
        operation = self._model.operation_model(action)
        arguments = EC2QueryParser(operation).parse({"values": form})
        problems = ParamValidator().validate(arguments, operation.input_shape)
        if problems.has_errors():
            raise RefusedCall("InvalidParameterValue", problems.generate_report())
        region = region_of(environ)
        with self._lock:
            self.calls.append((action, arguments))
            self.called.append(region)
        self.hold(action)
        fault = next((one for one in self.faults if one.action in (action, "*") and one.times > 0), None)
        if fault is not None:
            fault.times -= 1
            if not fault.after:
                raise RefusedCall(fault.code, fault.message, fault.status)
        with self._lock:
            body = self._once(action, arguments, form, environ)
        self.hold_after(action)
        if fault is not None:
            raise RefusedCall(fault.code, fault.message, fault.status)
        return body

    def _once(
        self, action: str, arguments: dict[str, Any], form: dict[str, str], environ: dict[str, Any]
    ) -> bytes:
        """The same token again brings the same answer; with other arguments it is refused."""
        key = action, arguments.get("ClientToken", ""), region_of(environ)
        same = repr(sorted(form.items()))
        if action in TOKENED and key[1] and key in self._tokens:
            before, body = self._tokens[key]
            if before != same:
                raise RefusedCall(
                    "IdempotentParameterMismatch",
                    "The request uses the same client token as a previous, but non-identical request.",
                )
            return body
        own = getattr(self, f"_do_{action}", None)
        body = own(arguments, environ, form) if own else self._forward(environ, form)
        if action in TOKENED and key[1]:
            self._tokens[key] = same, body
        return body

    def _forward(self, environ: dict[str, Any], form: dict[str, str]) -> bytes:
        raw = urllib.parse.urlencode(form).encode()
        inner = {**environ, "wsgi.input": io.BytesIO(raw), "CONTENT_LENGTH": str(len(raw))}
        inner.pop("werkzeug.request", None)
        status: list[str] = []
        body = b"".join(self._inner(inner, lambda line, headers, exc=None: status.append(line)))
        if not status[0].startswith("200"):
            from xml.etree import ElementTree

            root = ElementTree.fromstring(body)
            raise RefusedCall(root.findtext(".//{*}Code") or "?", root.findtext(".//{*}Message") or "")
        return body

    def _answer(self, action: str, result: dict[str, Any]) -> bytes:
        from moto.core.serialize import EC2Serializer, SerializationContext

        serializer = EC2Serializer(self._model.operation_model(action), context=SerializationContext("req-1"))
        made = serializer.serialize(result)["body"]
        return made.encode() if isinstance(made, str) else made

    # --- what moto does not have, or not rightly

    def _do_GetSpotPlacementScores(self, arguments: dict[str, Any], *_: Any) -> bytes:
        scores = []
        for region in arguments["RegionNames"]:
            for zone in self.backends[region].describe_availability_zones():
                left = max(self._left(kind, zone.name) for kind in arguments["InstanceTypes"])
                score = self.scores.get(region, min(10, max(1, left * 10 // arguments["TargetCapacity"])))
                scores.append({"Region": region, "AvailabilityZoneId": zone.zone_id, "Score": score})
        return self._answer("GetSpotPlacementScores", {"SpotPlacementScores": scores})

    def _do_DescribeSpotPriceHistory(self, arguments: dict[str, Any], environ: Any, *_: Any) -> bytes:
        from datetime import UTC, datetime

        rows = [
            {
                "InstanceType": kind,
                "AvailabilityZone": zone.name,
                "SpotPrice": f"{self.prices.get((kind, zone.name), 0.2):.4f}",
                "ProductDescription": "Linux/UNIX",
                "Timestamp": datetime.now(UTC),
            }
            for kind in arguments["InstanceTypes"]
            for zone in self.backends[region_of(environ)].describe_availability_zones()
            if self.prices.get((kind, zone.name), 0.2)
        ]
        return self._answer("DescribeSpotPriceHistory", {"SpotPriceHistory": rows})

    def _do_DescribeSpotInstanceRequests(self, arguments: dict[str, Any], *_: Any) -> bytes:
        from datetime import UTC, datetime

        wanted = {one["Name"]: one["Values"] for one in arguments.get("Filters", [])}
        assert wanted["status-code"] == ["marked-for-termination"]
        rows = [
            {
                "SpotInstanceRequestId": f"sir-{name[2:10]}",
                "InstanceId": name,
                "State": "active",
                "Status": {
                    "Code": "marked-for-termination",
                    "UpdateTime": datetime.fromtimestamp(self.marked[name], UTC),
                },
            }
            for name in wanted["instance-id"]
            if name in self.marked
        ]
        return self._answer("DescribeSpotInstanceRequests", {"SpotInstanceRequests": rows})

    def _do_CreatePlacementGroup(self, arguments: dict[str, Any], *_: Any) -> bytes:
        name = arguments["GroupName"]
        if name in self._groups:
            raise RefusedCall("InvalidPlacementGroup.Duplicate")
        self._groups[name] = {"GroupName": name, "State": "available", "Strategy": arguments["Strategy"]}
        return self._answer("CreatePlacementGroup", {"PlacementGroup": self._groups[name]})

    def _do_DeletePlacementGroup(self, arguments: dict[str, Any], *_: Any) -> bytes:
        if self._groups.pop(arguments["GroupName"], None) is None:
            raise RefusedCall("InvalidPlacementGroup.Unknown")
        return self._answer("DeletePlacementGroup", {})

    def _do_DeleteLaunchTemplate(
        self, arguments: dict[str, Any], environ: dict[str, Any], form: dict[str, str]
    ) -> bytes:
        name = arguments.get("LaunchTemplateName")
        if name is not None and name not in self.backends[region_of(environ)].launch_template_name_to_ids:
            raise RefusedCall("InvalidLaunchTemplateName.NotFoundException", str(name))
        return self._forward(environ, form)

    def _do_DescribeInstances(
        self, arguments: dict[str, Any], environ: dict[str, Any], form: dict[str, str]
    ) -> bytes:
        now_s = time.monotonic()
        hidden = {name for name, born_s in self._born_s.items() if now_s - born_s < self.invisible_s}
        for name in arguments.get("InstanceIds", []):
            if name in hidden:
                raise RefusedCall("InvalidInstanceID.NotFound", f"The instance ID '{name}' does not exist")
        body = self._forward(environ, form)
        ending = {n for n, t in self._ending_s.items() if now_s - t < self.shutting_down_s}
        if not hidden and not ending:
            return body
        from botocore.parsers import EC2QueryParser as AnswerParser

        operation = self._model.operation_model("DescribeInstances")
        found = AnswerParser().parse(
            {"body": body, "headers": {}, "status_code": 200}, operation.output_shape
        )
        found.pop("ResponseMetadata", None)
        for reservation in found["Reservations"]:
            shown = [one for one in reservation["Instances"] if one["InstanceId"] not in hidden]
            reservation["Instances"] = shown
            for one in shown:
                if one["InstanceId"] in ending:
                    one["State"] = {"Code": 32, "Name": "shutting-down"}
        return self._answer("DescribeInstances", found)

    def _do_TerminateInstances(
        self, arguments: dict[str, Any], environ: dict[str, Any], form: dict[str, str]
    ) -> bytes:
        body = self._forward(environ, form)
        for name in arguments["InstanceIds"]:
            self._ending_s.setdefault(name, time.monotonic())
            self.on_end(self.instance(name))
        return body

    def _do_RunInstances(
        self, arguments: dict[str, Any], environ: dict[str, Any], form: dict[str, str]
    ) -> bytes:
        before = {one.id for one in self.backend.all_instances()}
        body = self._forward(environ, form)
        for one in self.backend.all_instances():
            if one.id not in before:
                self._born_s[one.id] = time.monotonic()
                self.on_launch(one)
        return body

    def _do_CreateFleet(
        self, arguments: dict[str, Any], environ: dict[str, Any], form: dict[str, str]
    ) -> bytes:
        backend = self.backends[region_of(environ)]
        wanted = arguments["TargetCapacitySpecification"]["TotalTargetCapacity"]
        spot = arguments.get("SpotOptions", {})
        least = spot.get("MinTargetCapacity", 0)
        if least and not (spot.get("SingleInstanceType") or spot.get("SingleAvailabilityZone")):
            raise RefusedCall("InvalidParameterCombination", "MinTargetCapacity needs one type or one zone")
        (config,) = arguments["LaunchTemplateConfigs"]
        pools = []
        for number, override in enumerate(config["Overrides"], 1):
            zone = backend.get_subnet(override["SubnetId"]).availability_zone
            pools.append((self._left(override["InstanceType"], zone), -number, override, zone))
        errors = [
            {
                "LaunchTemplateAndOverrides": {"Overrides": override},
                "Lifecycle": "spot",
                "ErrorCode": "InsufficientInstanceCapacity",
                "ErrorMessage": f"We currently do not have sufficient {override['InstanceType']} capacity in "
                f"the Availability Zone you requested ({zone}).",
            }
            for left, _, override, zone in pools
            if left < wanted
        ]
        left, number, override, zone = max(pools)
        count = min(wanted, left)
        if count == 0 or count < least:
            nothing = {"FleetId": "fleet-0", "Errors": errors, "Instances": []}
            return self._answer("CreateFleet", nothing)
        if (override["InstanceType"], zone) in self.capacity:
            self.capacity[override["InstanceType"], zone] -= count
        prefix = "LaunchTemplateConfigs.1.Overrides."
        chosen = f"{prefix}{-number}."
        inner = {key: value for key, value in form.items() if not key.startswith(prefix)}
        inner |= {
            key.replace(chosen, f"{prefix}1."): value for key, value in form.items() if key.startswith(chosen)
        }
        capacity = "TargetCapacitySpecification."
        inner |= {f"{capacity}TotalTargetCapacity": str(count), f"{capacity}SpotTargetCapacity": str(count)}
        self._forward(environ, inner)
        fleet = list(backend.fleets.values())[-1]
        names = []
        for request in fleet.spot_requests:
            names.append(request.instance.id)
            self._born_s[request.instance.id] = time.monotonic()
            self.on_launch(request.instance)
        rows = [
            {
                "LaunchTemplateAndOverrides": {"Overrides": override},
                "Lifecycle": "spot",
                "InstanceIds": names,
                "InstanceType": override["InstanceType"],
            }
        ]
        return self._answer("CreateFleet", {"FleetId": fleet.id, "Errors": errors, "Instances": rows})

    def _left(self, kind: str, zone: str) -> int:
        return self.capacity.get((kind, zone), self.default_capacity)

    def _json(
        self, target: str, raw: bytes, environ: dict[str, Any], start: Callable[..., Any]
    ) -> list[bytes]:
        """Services other than EC2."""
        kind = environ.get("CONTENT_TYPE", "application/x-amz-json-1.1")
        action, region = target.split(".")[-1], region_of(environ)
        try:
            service, arguments = self.services.checked(target, raw)
            with self._lock:
                self.calls.append((action, arguments))
                self.called.append(region)
            fault = next((one for one in self.faults if one.action == action and one.times > 0), None)
            if fault is not None:
                fault.times -= 1
                raise RefusedCall(fault.code, fault.message, fault.status)
        except RefusedCall as refused:
            return send(start, refused.status, json_error(refused), kind)
        except ValueError as problem:
            return send(start, 400, json_error(RefusedCall("ValidationException", str(problem))), kind)
        answer = self.services.answer(service, action, arguments, self.quota_vcpus)
        return list(self._inner(environ, start)) if answer is None else send(start, 200, answer, kind)

"""The services beside EC2: requests are checked by botocore's models; what moto lacks is answered here."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

IMAGE = "ami-12c6146b"  # one that moto knows
_SERVICES = {
    "AmazonSQS": "sqs",
    "AWSEvents": "events",
    "AmazonSSM": "ssm",
    "ServiceQuotasV20190624": "service-quotas",
}


class Services:
    """EventBridge, SQS, Systems Manager and Service Quotas of one account."""

    def __init__(self, account: str) -> None:
        self._account = account

    def checked(self, target: str, raw: bytes) -> tuple[str, dict[str, Any]]:
        """The service and the arguments of a request.

        Raises:
            ValueError: they do not fit the service's model.
        """
        from botocore.validate import ParamValidator
        from moto.core.utils import get_service_model

        prefix, _, action = target.rpartition(".")
        service, arguments = _SERVICES[prefix], json.loads(raw or b"{}")
        shape = get_service_model(service).operation_model(action).input_shape
        problems = ParamValidator().validate(arguments, shape)
        if problems.has_errors():
            raise ValueError(problems.generate_report())
        return service, arguments

    def answer(
        self, service: str, action: str, arguments: dict[str, Any], quota_vcpus: float
    ) -> bytes | None:
        """Ours; None: moto knows."""
        if action == "GetServiceQuota":
            return json.dumps({"Quota": {"Value": quota_vcpus, **arguments}}).encode()
        if action == "GetParameter":
            row = {"Name": arguments["Name"], "Value": IMAGE, "Type": "String"}
            return json.dumps({"Parameter": row}).encode()
        return None

    def queues(self) -> list[str]:
        """The names of all queues and rules that there are, in every region."""
        from moto.events import events_backends
        from moto.sqs import sqs_backends

        found = [name for one in sqs_backends[self._account].values() for name in one.queues]
        for backend in events_backends[self._account].values():
            found += [name for bus in backend.event_buses.values() for name in bus.rules]
        return sorted(found)

    def announce(self, region: str, name: str, kind: str) -> None:
        """EC2 puts an event on the bus; it reaches the queues whose policy lets its rule in."""
        from moto.events import events_backends
        from moto.sqs import sqs_backends

        # moto's own delivery needs a package that we have no other use for
        event: dict[str, Any] = {
            "version": "0",
            "detail-type": kind,
            "source": "aws.ec2",
            "account": self._account,
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "region": region,
            "resources": [f"arn:aws:ec2:{region}:instance/{name}"],
            "detail": {"instance-id": name},
        }
        if "Interruption" in kind:
            event["detail"]["instance-action"] = "terminate"
        backend, queues = events_backends[self._account][region], sqs_backends[self._account][region]
        for rule in backend.describe_event_bus("default").rules.values():
            if rule.state != "ENABLED" or not rule.event_pattern.matches_event(event):
                continue
            for target in rule.targets:
                queue = target["Arn"].rsplit(":", 1)[1]
                (statement,) = json.loads(queues.queues[queue].policy)["Statement"]
                assert statement["Condition"]["ArnEquals"]["aws:SourceArn"] == rule.arn
                assert (statement["Resource"], statement["Effect"]) == (target["Arn"], "Allow")
                assert statement["Principal"] == {"Service": "events.amazonaws.com"}
                queues.send_message(queue_name=queue, message_body=json.dumps(event))

    def reset(self) -> None:
        """Forget all of it."""
        from moto.events import events_backends
        from moto.sqs import sqs_backends

        for backends in (events_backends, sqs_backends):
            for backend in backends[self._account].values():
                backend.reset()

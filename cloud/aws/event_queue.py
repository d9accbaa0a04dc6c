"""EC2's warnings by way of EventBridge and a queue: made, listened to, and given back.

A second source beside the metadata service of every node: it needs no agent and no connection to the node.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from typing import Any

from cloud.aws.api import Api, ApiError
from cloud.aws.errors import Verdict
from cloud.aws.event_requests import (
    TARGET,
    events_name,
    notice_of,
    policy_request,
    queue_request,
    rule_request,
    target_request,
)
from cloud.aws.requests import Owner
from cloud.provider import CloudError
from cloud.types import Notice, NoticeKind

LONG_POLL_S = 20
_PAUSE_S = 5.0
_MOST_REMEMBERED = 10_000
_LOG = logging.getLogger(__name__)


def ensure_queue(api: Api, owner: Owner) -> str:
    """The URL of this launch's queue, with the rule that fills it. Harmless to repeat.

    Raises:
        ApiError: something of it was refused.
        CloudError: the rule would not take the queue as its target.
    """
    url = next(iter(_queues(api, owner)), None) or _new_queue(api, owner)
    attributes = {"QueueUrl": url, "AttributeNames": ["QueueArn"]}
    arn = str(api.call("get_queue_attributes", attributes, "sqs")["Attributes"]["QueueArn"])
    rule_arn = str(api.call("put_rule", rule_request(owner), "events")["RuleArn"])
    api.call("set_queue_attributes", policy_request(url, arn, rule_arn), "sqs")
    failed = api.call("put_targets", target_request(owner, arn), "events").get("FailedEntries", [])
    if failed:
        raise CloudError(f"aws put_targets: {failed[0].get('ErrorCode')}: {failed[0].get('ErrorMessage')}")
    return url


def remove_queue(api: Api, owner: Owner) -> None:
    """Delete rule and queue. What is gone already is no error.

    Raises:
        ApiError: something of it was refused.
    """
    name = events_name(owner)
    calls: list[tuple[str, dict[str, Any], str]] = [
        ("remove_targets", {"Rule": name, "Ids": [TARGET]}, "events"),
        ("delete_rule", {"Name": name}, "events"),
        *(("delete_queue", {"QueueUrl": url}, "sqs") for url in _queues(api, owner)),
    ]
    for operation, request, service in calls:
        try:
            api.call(operation, request, service)
        except ApiError as error:
            if error.verdict is not Verdict.NOT_FOUND:
                raise


def _queues(api: Api, owner: Owner) -> list[str]:
    found = api.call("list_queues", {"QueueNamePrefix": events_name(owner)}, "sqs")
    return list(found.get("QueueUrls", []))


def _new_queue(api: Api, owner: Owner) -> str:
    request = queue_request(owner)
    try:
        return str(api.call("create_queue", request, "sqs")["QueueUrl"])
    except ApiError as error:
        if not error.code.endswith("QueueDeletedRecently"):
            raise
    # A name is free again only a minute after its queue was deleted: a job that is resumed at once.
    another = {**request, "QueueName": f"{request['QueueName']}-{secrets.token_hex(3)}"}
    return str(api.call("create_queue", another, "sqs")["QueueUrl"])


class QueueWatch(threading.Thread):
    """Listens to one queue with long polls, and keeps what it has heard, by instance.

    In a queue of our own (`own`) every message is deleted: it is our copy, and what is said about instances
    of others is of no use to anybody. In a queue of the user's, others may listen too: only messages about
    instances that `ours` knows are deleted, the rest come back when their time of invisibility is over.
    """

    def __init__(self, api: Api, url: str, own: bool, ours: Callable[[str], bool]) -> None:
        super().__init__(name="notice-queue", daemon=True)
        self._api, self._url, self._own, self._ours = api, url, own, ours
        self._heard: dict[str, Notice] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._told = ""

    def heard(self) -> dict[str, Notice]:
        """By instance; an interruption outweighs a hint about rebalancing."""
        with self._lock:
            return dict(self._heard)

    def stop(self) -> None:
        """Listen no more. The poll in progress is left to its end: nothing waits for it."""
        self._ended.set()

    def run(self) -> None:
        """Until stopped. A queue that cannot be read is tried again: nodes hear of their end themselves."""
        while not self._ended.is_set():
            try:
                self._poll()
                self._told = ""
            except CloudError as error:
                if str(error) != self._told and not self._ended.is_set():
                    self._told = str(error)
                    _LOG.warning("aws: the queue of notices cannot be read: %s", error)
                self._ended.wait(_PAUSE_S)

    def _poll(self) -> None:
        request = {"QueueUrl": self._url, "MaxNumberOfMessages": 10, "WaitTimeSeconds": LONG_POLL_S}
        for message in self._api.call("receive_message", request, "sqs").get("Messages", []):
            found = notice_of(message["Body"])
            if found is not None:
                self._remember(*found)
            if self._own or (found is not None and self._ours(found[0])):
                handle = {"QueueUrl": self._url, "ReceiptHandle": message["ReceiptHandle"]}
                self._api.call("delete_message", handle, "sqs")

    def _remember(self, name: str, notice: Notice) -> None:
        """A message may come twice, and before the launch has told us the instance's name."""
        with self._lock:
            known = self._heard.get(name)
            if known is None or (known.kind, notice.kind) == (NoticeKind.REBALANCE, NoticeKind.INTERRUPTION):
                self._heard.pop(name, None)
                self._heard[name] = notice
            while len(self._heard) > _MOST_REMEMBERED:
                del self._heard[next(iter(self._heard))]

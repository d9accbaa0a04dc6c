"""The requests that bring EC2's warnings into a queue, and what the queue's messages say. Pure.

EventBridge delivers the two events of a spot instance to every rule that matches them:
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from cloud.aws.requests import Owner, Request
from cloud.types import Notice, NoticeKind

INTERRUPTION = "EC2 Spot Instance Interruption Warning"
REBALANCE = "EC2 Instance Rebalance Recommendation"
NOTICE_S = 120.0  # between the event and the end
TARGET = "queue"
# What nobody has fetched by then is of no use: the instance is long gone.
RETENTION_S = 600


def events_name(owner: Owner) -> str:
    """Of rule and queue. Each launch has its own: a message can then never be taken by another launch."""
    return f"parcae-{owner.launch}"


def queue_request(owner: Owner) -> Request:
    """CreateQueue."""
    tags = {tag["Key"]: tag["Value"] for tag in owner.tags()}
    attributes = {"MessageRetentionPeriod": str(RETENTION_S)}
    return {"QueueName": events_name(owner), "Attributes": attributes, "tags": tags}


def rule_request(owner: Owner) -> Request:
    """PutRule: an event does not tell the instance's tags, so those of the whole region match."""
    return {
        "Name": events_name(owner),
        "Description": "Warnings about spot instances, for Parcae",
        "EventPattern": json.dumps({"source": ["aws.ec2"], "detail-type": [INTERRUPTION, REBALANCE]}),
        "State": "ENABLED",
        "Tags": owner.tags(),
    }


def policy_request(queue_url: str, queue_arn: str, rule_arn: str) -> Request:
    """SetQueueAttributes: this rule, and nobody else, may send to the queue."""
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "events.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": queue_arn,
        "Condition": {"ArnEquals": {"aws:SourceArn": rule_arn}},
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    return {"QueueUrl": queue_url, "Attributes": {"Policy": policy}}


def target_request(owner: Owner, queue_arn: str) -> Request:
    """PutTargets."""
    return {"Rule": events_name(owner), "Targets": [{"Id": TARGET, "Arn": queue_arn}]}


def notice_of(body: str) -> tuple[str, Notice] | None:
    """The instance's id, and what the message announces; None for messages of another kind, and nonsense."""
    try:
        event: dict[str, Any] = json.loads(body)
        name = str(event["detail"]["instance-id"])
        if event["detail-type"] == REBALANCE:
            return name, Notice(NoticeKind.REBALANCE, None)
        if event["detail-type"] == INTERRUPTION:
            at_s = datetime.fromisoformat(event["time"]).timestamp()
            return name, Notice(NoticeKind.INTERRUPTION, at_s + NOTICE_S)
    except (ValueError, KeyError, TypeError):
        pass
    return None

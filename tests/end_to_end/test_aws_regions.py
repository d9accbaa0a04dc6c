"""A whole job whose region is taken away: it goes on in another one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.cloud.aws.conftest import ec2, endpoint  # noqa: F401
from tests.cloud.aws.front import Front
from tests.end_to_end.harness import STEPS, Finished
from tests.end_to_end.machines import Machines
from tests.end_to_end.test_aws import aws, machines  # noqa: F401

# ruff: noqa: F811
pytestmark = pytest.mark.timeout(180)


def test_a_job_moves_to_another_region_and_loses_nothing(
    ec2: Front, machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Finished
) -> None:
    """Two workers an instance. The queue's notice, which no node hears, is obeyed; then the east takes all
    back and has nothing more: training goes on in the west from the backup, with a quiet run's weights.
    """
    monkeypatch.setattr("cloud.aws.event_queue.LONG_POLL_S", 1)
    monkeypatch.setattr("cloud.aws.event_requests.NOTICE_S", 2.5)
    kind, east = "g7e.12xlarge", [f"us-east-1{zone}" for zone in "abcdef"]
    noticed: list[tuple[str, float]] = []
    taken: list[str] = []  # once: steps come again after a rollback

    def interfere(step: int, provider: Any) -> None:
        if taken:
            return
        time.sleep(0.08)
        if not noticed:
            noticed.append((next(iter(machines.nodes)), time.monotonic()))
            ec2.announce(noticed[0][0], "EC2 Spot Instance Interruption Warning")
        if step >= 15 and time.monotonic() > noticed[0][1] + 3:
            ec2.capacity.update({(kind, zone): 0 for zone in east})
            taken.extend(name for name, node in machines.nodes.items() if node.alive)
            for name in taken:
                machines.vanish(name)

    ec2.prices.update({(kind, f"us-west-2{zone}"): 0.9 for zone in "abcd"})
    options = {
        "nodes": 2, "gpus_per_node": 2, "steps": STEPS,
        "settings": {
            "instance_types": [kind], "regions": ["us-west-2", "us-east-1"], "notices": "eventbridge",
        },
    }  # fmt: skip
    run = aws(tmp_path, "moved", machines, interfere, **options)
    assert_trained(run, undisturbed)
    name = noticed[0][0]
    first = {event["kind"]: event for event in reversed(run.events)}
    assert first["notice"]["text"].startswith(name)
    assert first["notice"]["time_s"] < first["migration"]["time_s"] < first["rollback"]["time_s"]
    assert "prepared" in first["migration"]["text"]
    regions = ec2.regions_of("CreateFleet")
    assert (regions[0], regions[-1]) == ("us-east-1", "us-west-2")
    assert {len(machines.pids(one, "worker")) for one in machines.nodes} == {2}
    assert (ec2.live(), ec2.services.queues()) == ([], [])


def assert_trained(run: Finished, base: Finished) -> None:
    """Nothing lost, nothing repeated, and an undisturbed run's losses and weights."""
    assert (run.result.state, run.result.samples_lost, run.result.samples_repeated) == ("done", 0, 0)
    assert run.losses == base.losses
    assert run.result.weights_sha256 == base.result.weights_sha256

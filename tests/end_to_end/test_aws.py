"""A job on `--cloud aws`: the real code against a stand-in of EC2 whose instances are local nodes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parcae_cli.catalogue import load_fleet
from runtime.control.job.history import held_trace
from runtime.control.job.journal import Journal
from runtime.planning.trace_formats import parse_trace
from tests.cloud.aws.conftest import ec2, endpoint  # noqa: F401
from tests.cloud.aws.front import Front
from tests.end_to_end.harness import STEPS, Finished, processes_of, train
from tests.end_to_end.machines import Machines, zygote

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def machines(ec2: Front, tmp_path: Path) -> Iterator[Machines]:  # noqa: F811
    """Switched off in the end; a dead node's processes must be gone by then."""
    made = Machines(ec2, tmp_path / "machines")
    made.zygote = zygote()
    yield made
    assert made.close() == []
    assert processes_of(tmp_path) == []


def fleet(machines: Machines, **changes: Any) -> dict[str, Any]:
    """The shipped settings, with this Python, and times that suit a test."""
    times = {
        "retry_s": 0.2, "grace_s": 3, "describe_s": 0.3, "notice_poll_s": 0.2, "cool_down_s": 1, "boot_s": 60,
        "lease_s": 20, "close_s": 10,
    }  # fmt: skip
    return {
        **load_fleet("aws"),
        "instance_types": ["g4dn.xlarge"],
        "device": "model",
        "python": sys.executable,
        "packages": [],
        "ssh_port": machines.ssh_port,
        "times": {**times, **changes.pop("times", {})},
        **changes,
    }


def aws(home: Path, name: str, machines: Machines, watch: Any = None, **options: Any) -> Finished:
    """Train gpt-tiny there."""
    settings = fleet(machines, **options.pop("settings", {}))
    return train(home, name, watch, cloud="aws", fleet=settings, **{"steps": STEPS, **options})


def test_a_job_survives_interruptions(
    ec2: Front,  # noqa: F811
    machines: Machines,
    tmp_path: Path,
    undisturbed: Finished,
) -> None:
    """One node goes with a notice, the others without; replacements come, and it can all be replayed later.

    Two nodes are the fewest, so after the second loss training must wait for a replacement. Losses and
    weights are those of a run that nothing happened to.
    """
    names: list[str] = []

    def interfere(step: int, provider: Any) -> None:
        time.sleep(0.03)  # so that there is training left when the notice's time is over
        if not names:
            names.extend(machines.nodes)
            machines.notice(names[0], 1.5)
        if not machines.nodes[names[0]].alive and "vanished" not in names:
            names.append("vanished")
            for name in [name for name in machines.nodes if name != names[1] and machines.nodes[name].alive]:
                machines.vanish(name)

    run = aws(tmp_path, "storm", machines, interfere, nodes=3)
    assert run.result.state == "done"
    assert (run.result.samples_lost, run.result.samples_repeated) == (0, 0)
    assert run.losses == undisturbed.losses
    assert run.result.weights_sha256 == undisturbed.result.weights_sha256
    assert len(machines.nodes) >= 4
    assert len(machines.pids(names[1], "worker")) == 1
    first = {event["kind"]: event for event in reversed(run.events)}
    assert "prepared" in first["migration"]["text"]  # the notice was obeyed before its time was over
    assert first["notice"]["time_s"] < first["migration"]["time_s"] < first["lost"]["time_s"]
    assert ec2.live() == []
    journal = Journal(tmp_path)
    assert journal.open_intents("storm") == []
    assert journal.instances("storm", live_only=True) == []
    noticed = {event.text.split()[0] for event in journal.events("storm", 1000) if event.kind == "notice"}
    recorded = journal.capacity("aws", ["g4dn.xlarge/" + zone for zone in ("us-east-1a", "us-east-1b")], 0)
    assert recorded and all(row.wanted == 3 for row in recorded)
    assert max(row.tried for row in recorded) >= 1
    seen = held_trace("storm", journal.instances("storm"), noticed, journal.job("storm").created_s + 1e6)
    journal.close()
    again = parse_trace(seen.as_csv(), "storm.csv")
    ends = {event.name: event.action for event in again.events if event.action != "add"}
    assert ends[names[0]] == "remove"
    assert set(ends.values()) == {"remove", "kill"}

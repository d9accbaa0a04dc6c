"""A job on `--cloud gcp`: the real code, and a stand-in of Compute Engine whose instances are local nodes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parcae_cli.catalogue import load_fleet
from runtime.control.journal import Journal
from tests.cloud.gcp.conftest import compute  # noqa: F401
from tests.cloud.gcp.fake_compute import MACHINE_TYPE, FakeCompute
from tests.end_to_end.gcp_machines import GcpMachines
from tests.end_to_end.harness import Finished, processes_of, train

pytestmark = pytest.mark.timeout(240)  # workers load torch several times over
STEPS = 40


@pytest.fixture
def machines(compute: FakeCompute, tmp_path: Path) -> Iterator[GcpMachines]:  # noqa: F811
    """Switched off in the end; a dead node's processes must be gone by then."""
    made = GcpMachines(compute, tmp_path / "machines")
    yield made
    assert made.close() == []
    assert processes_of(tmp_path) == []


def gcp(home: Path, name: str, watch: Any = None, **options: Any) -> Finished:
    """Train gpt-tiny there, with the shipped settings, this Python, and times that suit a test."""
    times = {
        "retry_s": 0.2, "grace_s": 3, "describe_s": 0.3, "notice_poll_s": 0.2, "cool_down_s": 1, "boot_s": 60,
        "lease_s": 20, "close_s": 10,
    }  # fmt: skip
    settings = {
        **load_fleet("gcp"),
        "machine_types": [MACHINE_TYPE],
        "device": "model",
        "python": sys.executable,
        "packages": [],
        "times": times,
    }
    return train(home, name, watch, cloud="gcp", fleet=settings, steps=STEPS, **options)


def test_a_job_survives_preemptions(
    compute: FakeCompute,  # noqa: F811
    machines: GcpMachines,
    tmp_path: Path,
) -> None:
    """One node goes with a notice, one without; replacements come; the weights are those of a quiet run."""
    names: list[str] = []
    done: set[int] = set()

    def interfere(step: int, provider: Any) -> None:
        if not names:
            names.extend(machines.nodes)
        if step == 8 and 8 not in done:
            machines.notice(names[0], 1.5)
        if step == 20 and 20 not in done:  # steps come again after a rollback
            for name in [name for name in compute.live() if name not in (names[0], names[1])]:
                compute.preempt(name)
        done.add(step)

    run = gcp(tmp_path, "storm", interfere, nodes=3)
    assert run.result.state == "done", run.result.why
    assert (run.result.samples_lost, run.result.samples_repeated) == (0, 0)
    assert len(machines.nodes) >= 4
    assert len(machines.pids(names[1], "worker")) == 1
    assert any(event["kind"] == "notice" for event in run.events)
    assert compute.live() == []
    quiet = train(tmp_path, "quiet", nodes=3, steps=STEPS)
    assert run.losses == quiet.losses
    assert run.result.weights_sha256 == quiet.result.weights_sha256
    journal = Journal(tmp_path)
    assert journal.open_intents("storm") == []
    assert journal.instances("storm", live_only=True) == []
    journal.close()

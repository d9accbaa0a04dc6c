"""A job on `--cloud gcp`: the real code, and a stand-in of Compute Engine whose instances are local nodes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud.gcp.anchor import anchor_lives, end_anchor, rent_anchor
from cloud.gcp.api import Api
from cloud.gcp.settings import GcpSettings
from cloud.provider import CloudError, NoCapacityError
from parcae_cli.catalogue import load_fleet
from runtime.control.backup.checkpoint_target import target_of
from runtime.control.job.history import held_trace
from runtime.control.job.journal import Journal
from tests.cloud.gcp.conftest import compute  # noqa: F401
from tests.cloud.gcp.fake_compute import MACHINE_TYPE, ZONES, FakeCompute, Fault
from tests.end_to_end.brake import LONGEST_HOLD_S, Brake
from tests.end_to_end.gcp_machines import GcpMachines, gcp_fleet
from tests.end_to_end.harness import processes_of, train
from tests.end_to_end.machines import zygote
from tests.end_to_end.test_aws_faults import until

pytestmark = pytest.mark.timeout(240)  # workers load torch several times over
STEPS = 40


@pytest.fixture
def machines(compute: FakeCompute, tmp_path: Path) -> Iterator[GcpMachines]:  # noqa: F811
    """Switched off in the end; a dead node's processes must be gone by then."""
    made = GcpMachines(compute, tmp_path / "machines")
    yield made
    assert made.close() == []
    assert processes_of(tmp_path) == []


def test_a_job_of_two_pools_whose_machines_have_two_gpus(
    compute: FakeCompute,  # noqa: F811
    machines: GcpMachines,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One zone has one machine only, so the job is in both, at the price of each; a preempted machine is
    replaced, both its workers with it, and the weights are those of a local run.
    """
    machines.zygote = zygote()
    compute.capacity = {ZONES[0]: 1, ZONES[1]: 2}
    times = {"describe_s": 0.3, "grace_s": 3, "retry_s": 0.2, "cool_down_s": 1, "lease_s": 20, "close_s": 10}
    fleet = {**load_fleet("gcp"), "machine_types": ["g2-standard-24"], "device": "model", "packages": []}
    fleet |= {"python": sys.executable, "times": times}
    vanished: list[str] = []

    def held_s() -> float:  # what is lost is replaced while there is training left
        joined = (tmp_path / "jobs/two/events.jsonl").read_text().count('"joined"') if vanished else 0
        return LONGEST_HOLD_S if vanished and joined < 3 else 0.0

    brake = Brake(monkeypatch, held_s)

    def interfere(step: int, provider: Any) -> None:
        brake.stepped()
        if step == 12 and not vanished:
            vanished.append(next(name for name, one in compute.instances.items() if one["zone"][-1] == "b"))
            machines.vanish(vanished[0])

    run = train(tmp_path, "two", interfere, cloud="gcp", fleet=fleet, nodes=2, steps=STEPS)
    base = train(tmp_path, "base", nodes=4, steps=STEPS)
    assert run.result.state == "done", run.result.why
    assert run.losses == base.losses
    assert run.result.weights_sha256 == base.result.weights_sha256
    assert max(line["pipelines"] * line["stages"] for line in run.metrics) == 4
    journal = Journal(tmp_path)
    rows = [row.instance for row in journal.instances("two")]
    seen = held_trace("two", journal.instances("two"), set(), journal.job("two").created_s + 1e6)
    journal.close()
    assert sorted((one.pool.zone, one.pool.gpus, one.pool.spot_usd_per_hour) for one in rows) == [
        (ZONES[0], 2, pytest.approx(0.70)), *[(ZONES[1], 2, pytest.approx(0.71))] * 2
    ]  # fmt: skip
    assert {event.name for event in seen.events} == {one.name for one in rows}
    assert compute.live() == []


def test_the_budget_ends_a_job_before_it_is_overstepped_and_its_state_is_kept(
    compute: FakeCompute,  # noqa: F811
    machines: GcpMachines,
    tmp_path: Path,
) -> None:
    """Three are wanted, two are affordable; it drains, its last step is in a checkpoint, nothing is left.

    Its nodes do not power off when they are told to: that word comes with a notice, not after it.
    """
    machines.zygote = zygote()
    compute.dearer = 12000.0  # 1 to 1.1 USD a second for each
    run = train(
        tmp_path, "poor", cloud="gcp", fleet=gcp_fleet(), nodes=3, steps=10**6,
        max_usd_per_hour=8000.0, budget_usd=40.0, checkpoint=str(tmp_path / "kept"), checkpoint_every=10**6,
    )  # fmt: skip
    assert run.result.state == "failed"
    assert "the budget is used up" in run.result.why
    assert len(compute.made) == 2
    assert 0.0 < run.result.usd <= 40.0
    assert run.result.usd_on_demand > 0
    kept = target_of(str(tmp_path / "kept")).read()
    assert kept.step == len(run.metrics) > 0
    heeded = [(node.folder / "logind/parcae.conf").read_text() for node in machines.nodes.values()]
    assert heeded == ["[Login]\nHandlePowerKey=ignore\n"] * 2
    assert compute.live() == []


def test_an_anchor_that_nobody_holds_any_more_deletes_itself(
    compute: FakeCompute,  # noqa: F811
    machines: GcpMachines,
    tmp_path: Path,
) -> None:
    """It stands while its lease is renewed; when the lease is removed, or grows old, it is deleted.

    By itself, with the credentials that its metadata server tells: a machine that only stopped would go on
    costing its disk.
    """
    times = {"dead_man_s": 2, "describe_s": 0.1, "operation_s": 5}
    fleet = {**load_fleet("gcp"), "machine_types": [MACHINE_TYPE], "times": times, "python": sys.executable}
    fleet |= {"anchor_packages": [], "anchor_python": sys.executable, "anchor_account": "default"}
    settings, api = GcpSettings.parse(fleet), Api(pause=lambda pause_s: None)
    for number in range(2):
        folder = tmp_path / str(number)
        anchor = rent_anchor(api, settings, folder, "job", "e2-standard-2", 0.067, list(ZONES))
        assert anchor_lives(folder)
        lease = machines.nodes[anchor.id].folder / "state/lease/held"
        assert not (machines.nodes[anchor.id].folder / "logind").exists()
        if number:
            lease.unlink()
        else:
            until(lambda lease=lease: time.time() - lease.stat().st_mtime > 1.0)  # type: ignore[misc]
            lease.touch()
            renewed_s = time.monotonic()
        until(lambda: compute.live() == [])
        assert number or time.monotonic() - renewed_s > 1.0
        assert not anchor_lives(folder)
        assert end_anchor(folder, 5.0) == []


def test_an_anchor_is_looked_for_in_every_zone_and_found_again_after_a_crash(
    compute: FakeCompute,  # noqa: F811
    machines: GcpMachines,
    tmp_path: Path,
) -> None:
    """A stock-out sends it to the next zone; what a lost answer leaves is found by its end."""
    fleet = {**load_fleet("gcp"), "machine_types": [MACHINE_TYPE], "anchor_account": "default"}
    fleet |= {"anchor_packages": [], "anchor_python": sys.executable}
    settings, api = GcpSettings.parse(fleet), Api(pause=lambda pause_s: None)
    compute.capacity = {ZONES[0]: 0, ZONES[1]: 1}
    rented = rent_anchor(api, settings, tmp_path / "a", "job", "e2-standard-2", 0.067, list(ZONES))
    assert rented.zone == ZONES[1]
    with pytest.raises(NoCapacityError, match="no zone has an e2-standard-2 for the anchor"):
        rent_anchor(api, settings, tmp_path / "b", "job", "e2-standard-2", 0.067, list(ZONES))
    assert end_anchor(tmp_path / "a", 5.0) == [rented.id]
    assert end_anchor(tmp_path / "a", 5.0) == []
    compute.capacity = dict.fromkeys(ZONES, 1)
    fault = Fault("regionInstances.bulkInsert", "backendError", 503, times=99, after=True)
    compute.faults.append(fault)
    with pytest.raises(CloudError, match="backendError"):
        rent_anchor(api, settings, tmp_path / "c", "job", "e2-standard-2", 0.067, list(ZONES))
    assert len(compute.live()) == 1
    fault.times = 0
    assert len(end_anchor(tmp_path / "c", 5.0)) == 1
    assert end_anchor(tmp_path / "b", 5.0) == compute.live() == []

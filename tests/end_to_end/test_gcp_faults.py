"""What may go wrong with a job at Compute Engine, by the command itself: nothing leaks, users are told."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cloud.gcp.conftest import compute  # noqa: F401
from tests.cloud.gcp.fake_compute import FakeCompute, Fault
from tests.end_to_end.gcp_machines import GcpMachines, LaunchGate, gcp_fleet
from tests.end_to_end.harness import lines
from tests.end_to_end.machines import zygote
from tests.end_to_end.test_aws_faults import Command, events, until
from tests.end_to_end.test_gcp import machines  # noqa: F401

# ruff: noqa: F811
pytestmark = pytest.mark.timeout(180)
INSERT = "regionInstances.bulkInsert"


@pytest.fixture
def parcae(machines: GcpMachines, tmp_path: Path) -> Iterator[Command]:
    """With a fresh home."""
    machines.zygote = zygote()
    made = Command(tmp_path, gcp_fleet(), "gcp")
    yield made
    made.close()


def test_ctrl_c_while_provisioning(compute: FakeCompute, parcae: Command) -> None:
    """The insert is under way: what it brings is ended before the command returns with 130."""
    gate = LaunchGate(compute)
    job = parcae.launch()
    assert gate.entered.wait(20)
    job.send_signal(signal.SIGINT)
    gate.open.set()
    _, err = job.communicate(timeout=30)
    assert (job.returncode, compute.live()) == (130, []), err
    assert parcae.run("down", "job")[0] == 0


def test_kill_9_in_the_launch_leaves_nothing_that_gc_does_not_find(
    compute: FakeCompute, parcae: Command
) -> None:
    """The launcher dies when Compute Engine has made its instances, before the answer comes."""
    gate = LaunchGate(compute)
    job = parcae.launch()
    assert gate.entered.wait(20)
    job.kill()
    job.wait(10)
    gate.open.set()
    code, said = parcae.run("gc")
    assert (code, compute.live()) == (0, []), said
    code, said = parcae.run("gc")
    assert (code, "nothing was left behind" in said) == (0, True)
    code, said = parcae.run("down", "--all")
    assert (code, compute.live()) == (0, []), said


def test_kill_9_in_the_launch_is_resumed(compute: FakeCompute, parcae: Command) -> None:
    """The launcher dies before Compute Engine acts on its request: the same again, and two machines."""
    gate = LaunchGate(compute, after=False)
    job = parcae.launch()
    assert gate.entered.wait(20)
    job.kill()
    job.wait(10)
    gate.open.set()
    assert parcae.start("resume", "job", "--detach").wait(40) == 0
    until(lambda: any(event["kind"] == "started" for event in events(parcae.home)))
    assert len(compute.live()) == len(compute.made) == 2
    code, said = parcae.run("down", "job")
    assert (code, compute.live()) == (0, []), said


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(INSERT, "quotaExceeded", 403, "Quota 'PREEMPTIBLE_NVIDIA_L4_GPUS' exceeded. Limit: 0.0", 99),
         "PREEMPTIBLE_NVIDIA_L4_GPUS"),
        (Fault(INSERT, "QUOTA_EXCEEDED", 403, "Quota 'GPUS_ALL_REGIONS' exceeded.", 99, inside=True),
         "GPUS_ALL_REGIONS"),
        (Fault(INSERT, "authError", 401, "Invalid Credentials", 99), "gcloud auth application-default"),
        (Fault("*", "authError", 401, "Invalid Credentials", 10**6), "gcloud auth application-default"),
    ],
    ids=["quota", "quota inside the operation", "credentials", "credentials from the first call"],
)  # fmt: skip
def test_what_can_never_be_met_fails_fast(
    compute: FakeCompute, parcae: Command, fault: Fault, said: str
) -> None:
    """Exit code 4 within seconds, one line that names the quota or the credentials, and nothing rented."""
    compute.faults.append(fault)
    job = parcae.launch()
    out, err = job.communicate(timeout=30)
    assert job.returncode == 4, out + err
    assert said in err
    assert "Traceback" not in err
    assert compute.made == {}
    assert compute.calls.count(INSERT) <= 1


def test_down_is_exit_5_while_the_api_cannot_be_seen(compute: FakeCompute, parcae: Command) -> None:
    """A job that trains loses its credentials: training goes on, `down` says what may live, then ends it."""
    job = parcae.launch()
    until(lambda: any(event["kind"] == "started" for event in events(parcae.home)))
    code, said = parcae.run("status", "job", "--once", "--json")
    money = json.loads(said)
    assert (code, money["usd_per_hour"]) == (0, pytest.approx(0.6))
    assert money["usd_on_demand"] / money["usd"] == pytest.approx(0.85 / 0.30)
    fault = Fault("*", "authError", 401, "Invalid Credentials", 10**6)
    compute.faults.append(fault)
    until(lambda: any("authError" in event["text"] for event in events(parcae.home)))
    metrics = parcae.home / "jobs/job/metrics.jsonl"
    seen = len(lines(metrics))
    until(lambda: len(lines(metrics)) > seen)
    code, said = parcae.run("down", "job")
    assert code == 5, said
    assert "cannot see to the end" in said
    assert job.wait(20) == 5
    fault.times = 0
    code, said = parcae.run("down", "job")
    assert (code, compute.live()) == (0, []), said


def test_a_failed_bootstrap_is_shown_with_its_log(
    compute: FakeCompute, machines: GcpMachines, parcae: Command
) -> None:
    """The machine is given back at once, and the log's last lines are in the events."""
    machines.break_bootstrap = True
    job = parcae.launch()
    until(lambda: any("the disk is on fire" in event["text"] for event in events(parcae.home)))
    job.send_signal(signal.SIGINT)
    job.communicate(timeout=30)
    assert (job.returncode, compute.live()) == (130, [])


def test_a_jobs_limits_hold_and_its_capacity_can_be_replayed(compute: FakeCompute, parcae: Command) -> None:
    """A dry run makes nothing; the fleet that is affordable is rented, time ends it, and it is a trace."""
    options = ("--cloud", "gcp", "--yes", "--fleet", str(parcae.fleet), "--nodes", "3")
    limits = ("--max-price-per-hour", "0.7", "--max-hours", "0.0025", "--budget", "1")
    code, said = parcae.run("launch", "gpt-tiny", *options, *limits, "--dry-run", "--json")
    plan = json.loads(said)["plan"]
    assert (code, plan["nodes"], plan["expected"]["usd_per_hour"]) == (0, 2, pytest.approx(0.6))
    assert "regionInstances.bulkInsert" not in compute.calls
    code, said = parcae.run("launch", "gpt-tiny", *options, *limits, "--steps", "100000", "--name", "job")
    assert code == 1, said
    assert "--max-hours" in said
    assert (len(compute.made), compute.live()) == (2, [])
    code, said = parcae.run("trace", "record", "job", "seen.csv")
    assert code == 0, said
    assert (parcae.home / "seen.csv").read_text().count("add") == 2
    code, said = parcae.run("trace", "record", "--cloud", "gcp", "-")  # of its pools, minute by minute
    assert (code, said.count("add")) == (0, 2), said

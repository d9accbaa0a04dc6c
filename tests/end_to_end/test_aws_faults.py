"""What may go wrong with a fleet at EC2, each through the real code: nothing leaks, and the user is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cloud.provider import MaybeStillRunningError, QuotaError
from runtime.control.job.journal import Journal
from tests.cloud.aws.conftest import ec2, endpoint  # noqa: F401
from tests.cloud.aws.front import Front
from tests.end_to_end.harness import lines
from tests.end_to_end.machines import PROJECT, Machines
from tests.end_to_end.test_aws import aws, fleet, machines  # noqa: F401

# ruff: noqa: F811
pytestmark = pytest.mark.timeout(180)


class Command:
    """The `parcae` command in a process of its own, with its home in `home`."""

    def __init__(self, home: Path, settings: Mapping[str, Any], cloud: str = "aws") -> None:
        self.home, self._cloud = home, cloud
        left_out = ("bootstrap", "gpus", "machines", "anchors")
        self.fleet = home / "fleet.toml"
        self.fleet.write_text(_toml({key: one for key, one in settings.items() if key not in left_out}))
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin; output is kept in pipes."""
        command = [sys.executable, "-P", "-m", "parcae_cli.main", *arguments]
        environment = {**os.environ, "PARCAE_HOME": str(self.home), "PYTHONPATH": str(PROJECT)}
        self._started.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=self.home,
            )
        )
        return self._started[-1]

    def launch(self, *more: str) -> subprocess.Popen[str]:
        """A job named `job` on two nodes."""
        where = ("--cloud", self._cloud, "--yes", "--fleet", str(self.fleet))
        settings = (*where, "--nodes", "2", "--name", "job")
        return self.start("launch", "gpt-tiny", "--steps", "100000", *settings, *more)

    def run(self, *arguments: str) -> tuple[int, str]:
        """To the end; exit code, and all that it said."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=40)
        return process.returncode, out + err

    def close(self) -> None:
        """Whatever still runs is killed."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()


@pytest.fixture
def parcae(machines: Machines, tmp_path: Path) -> Iterator[Command]:
    """With a fresh home."""
    made = Command(tmp_path, fleet(machines))
    yield made
    made.close()


def _toml(table: dict[str, Any]) -> str:
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    rows = [f"{key} = {json.dumps(value)}" for key, value in table.items() if key not in tables]
    for name, inner in tables.items():
        rows += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in inner.items())]
    return "\n".join(rows) + "\n"


def until(what: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait for it."""
    deadline_s = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)


def events(home: Path, name: str = "job") -> list[dict[str, Any]]:
    """What the job has said so far."""
    path = home / "jobs" / name / "events.jsonl"
    return lines(path) if path.exists() else []


class Gate:
    """Holds the first call of an action until it is opened."""

    def __init__(self, front: Front, action: str, after: bool = False) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

        def hold(called: str) -> None:
            if called == action and not self.entered.is_set():
                self.entered.set()
                self.open.wait(20)

        if after:
            front.hold_after = hold
        else:
            front.hold = hold


def test_ctrl_c_while_provisioning(ec2: Front, parcae: Command) -> None:
    """CreateFleet is under way: what it brings is ended before the command returns with 130."""
    gate = Gate(ec2, "CreateFleet")
    job = parcae.launch()
    assert gate.entered.wait(20)
    job.send_signal(signal.SIGINT)
    until(lambda: any(event["kind"] for event in events(parcae.home)) or job.poll() is None, 2)
    gate.open.set()
    _, err = job.communicate(timeout=30)
    assert job.returncode == 130, err
    assert ec2.live() == []
    assert len(ec2.backend.all_instances()) in (0, 2)


@pytest.mark.parametrize("moment", ["before", "after", "training"])
def test_kill_9_leaves_nothing_that_gc_does_not_find(ec2: Front, parcae: Command, moment: str) -> None:
    """The launcher dies before EC2 acts on a launch, before its answer comes, or in mid-training."""
    if moment == "training":
        job = parcae.launch()
        until(lambda: any(event["kind"] == "started" for event in events(parcae.home)))
        job.kill()
    else:
        gate = Gate(ec2, "CreateFleet", after=moment == "after")
        job = parcae.launch()
        assert gate.entered.wait(20)
        job.kill()
        job.wait(10)
        gate.open.set()
    job.wait(10)
    ec2.invisible_s = 0.5  # a sweep by tag alone would find nothing of what has just been launched
    code, said = parcae.run("gc")
    assert code == 0, said
    assert ec2.live() == []
    code, said = parcae.run("gc")
    assert (code, "nothing was left behind" in said) == (0, True)
    code, said = parcae.run("down")
    assert (code, ec2.live()) == (0, []), said


@pytest.mark.parametrize("after", [False, True])
def test_kill_9_in_the_launch_is_resumed(ec2: Front, parcae: Command, after: bool) -> None:
    """Before EC2 acts or before its answer comes: the same request again, and never more than were wanted."""
    gate = Gate(ec2, "CreateFleet", after=after)
    job = parcae.launch()
    assert gate.entered.wait(20)
    job.kill()
    job.wait(10)
    gate.open.set()
    ec2.invisible_s = 0.5
    assert parcae.start("resume", "job", "--detach").wait(40) == 0
    until(lambda: any(event["kind"] == "started" for event in events(parcae.home)))
    assert len(ec2.live()) == 2
    tokens = {request["ClientToken"] for request in ec2.actions("CreateFleet")}
    assert len(tokens) == 1
    code, said = parcae.run("down", "job")
    assert (code, ec2.live()) == (0, []), said


def test_down_ends_a_job_and_may_be_repeated(ec2: Front, parcae: Command) -> None:
    """From another process: launcher, instances and launch template are gone; the second time nothing is.

    Meanwhile `status` tells the money; the price has risen since the plan was made.
    """

    def dearer(action: str) -> None:
        if action == "CreateLaunchTemplate":
            ec2.prices.update(dict.fromkeys([("g4dn.xlarge", f"us-east-1{zone}") for zone in "abcdef"], 0.3))

    ec2.hold = dearer
    job = parcae.launch("--budget", "1000", "--max-hours", "5")
    until(lambda: any(event["kind"] == "started" for event in events(parcae.home)))
    journal = Journal(parcae.home)
    until(lambda: (journal.read_snapshot("job") or {}).get("usd_per_hour") == pytest.approx(0.6))
    journal.close()
    code, said = parcae.run("status", "job", "--once", "--json")
    assert code == 0, said
    money = json.loads(said)
    assert money["usd_per_hour"] == pytest.approx(0.6)
    assert 0.52 / 0.3 < money["usd_on_demand"] / money["usd"] < 0.53 / 0.2
    code, said = parcae.run("down", "job")
    assert code == 0, said
    assert ec2.live() == []
    assert ec2.backend.launch_template_name_to_ids == {}
    assert job.wait(10) == 130
    code, said = parcae.run("down", "--all")
    assert (code, "nothing is running" in said) == (0, True)


def test_a_failed_bootstrap_is_shown_with_its_log(ec2: Front, machines: Machines, parcae: Command) -> None:
    """The machine is given back at once, and the log's last lines are in the events."""
    machines.break_bootstrap = True
    job = parcae.launch()
    until(lambda: any("the disk is on fire" in event["text"] for event in events(parcae.home)))
    job.send_signal(signal.SIGINT)
    job.communicate(timeout=30)
    assert job.returncode == 130
    assert ec2.live() == []


def test_a_quota_that_can_never_be_met_fails_fast(ec2: Front, parcae: Command) -> None:
    """Exit code 4 within seconds, and the quota's name."""
    ec2.fault("CreateFleet", "MaxSpotInstanceCountExceeded", times=1000)
    job = parcae.launch()
    out, err = job.communicate(timeout=30)
    assert job.returncode == 4, out + err
    assert "All G and VT Spot Instance Requests" in err
    assert ec2.backend.all_instances() == []


def test_expired_credentials_do_not_stop_training(ec2: Front, machines: Machines, tmp_path: Path) -> None:
    """The user is told once, training reaches its end; a doubt about the rest is an error, mended by down."""
    faults = []

    def expire(step: int, provider: Any) -> None:
        if step == 5:
            faults.append(ec2.fault("*", "ExpiredToken", times=10**6))
            time.sleep(1.0)  # the fleet asks the API meanwhile

    with pytest.raises(MaybeStillRunningError, match="shut themselves down"):
        aws(tmp_path, "expired", machines, expire, nodes=2, steps=30)
    told = [event for event in events(tmp_path, "expired") if "ExpiredToken" in event["text"]]
    assert len(told) == 1
    assert len(lines(tmp_path / "jobs" / "expired" / "metrics.jsonl")) == 30
    assert len(ec2.live()) == 2
    faults[0].times = 0
    from runtime.control.providers.aws import sweep

    assert len(sweep(tmp_path / "jobs" / "expired" / "aws")) == 2
    assert ec2.live() == []


def test_a_machine_that_vanishes_while_it_is_dialled_is_replaced(
    ec2: Front, machines: Machines, tmp_path: Path
) -> None:
    """The API says that it is gone: no more calls to it, another one comes. Time's limit ends the job."""
    boot = ec2.on_launch

    def doomed(instance: Any) -> None:
        boot(instance)
        if len(machines.nodes) == 1:
            ec2.interrupt(instance.id)

    ec2.on_launch = doomed
    run = aws(tmp_path, "dialled", machines, nodes=2, steps=10**6, max_hours=12 / 3600)
    assert run.result.state == "failed"
    assert "--max-hours" in run.result.why
    assert run.result.steps > 0
    assert len(machines.nodes) >= 3
    assert ec2.live() == []


def test_prices_limit_the_fleet_and_the_budget_ends_it(
    ec2: Front, machines: Machines, tmp_path: Path
) -> None:
    """Four are wanted, two are affordable in an hour; and the job ends before the budget is overstepped."""
    ec2.prices.update(dict.fromkeys([("g4dn.xlarge", f"us-east-1{zone}") for zone in "abcdef"], 3600.0))
    run = aws(tmp_path, "rich", machines, nodes=4, steps=10**6, max_usd_per_hour=7300.0, budget_usd=24.0)
    assert run.result.state == "failed"
    assert "the budget is used up" in run.result.why
    assert len(machines.nodes) == 2
    assert run.result.usd <= 24.0
    assert ec2.live() == []


def test_a_notice_that_only_the_api_gives_is_obeyed(ec2: Front, machines: Machines, tmp_path: Path) -> None:
    """The node's metadata service is silent: the spot request's mark makes the layout change in time."""

    def mark(step: int, provider: Any) -> None:
        time.sleep(0.05)
        if step == 3:
            ec2.marked[next(iter(machines.nodes))] = time.time()

    run = aws(tmp_path, "api", machines, mark, nodes=3, steps=40)
    first = {event["kind"]: event for event in reversed(run.events)}
    assert first["notice"]["text"].startswith(next(iter(machines.nodes)))
    assert sum(event["kind"] == "notice" for event in run.events) == 1
    assert run.result.state == "done"


def test_stock_out_waits_and_says_so(ec2: Front, parcae: Command) -> None:
    """No pool has anything: the job says which and when it asks again, and starts when one has."""
    ec2.default_capacity = 0
    parcae.launch()
    until(lambda: any("no capacity in g4dn.xlarge" in event["text"] for event in events(parcae.home)))
    assert not any(event["kind"] == "started" for event in events(parcae.home))
    ec2.default_capacity = 10
    until(lambda: any(event["kind"] == "started" for event in events(parcae.home)))
    assert parcae.run("down", "job")[0] == 0
    assert ec2.live() == []


def test_a_quota_error_names_itself_in_process(ec2: Front, machines: Machines, tmp_path: Path) -> None:
    """The account may not even run the smallest fleet: refused before anything is made."""
    ec2.quota_vcpus = 4
    with pytest.raises(QuotaError, match="All G and VT"):
        aws(tmp_path, "poor", machines, nodes=2)
    assert ec2.actions("CreateLaunchTemplate") == []


def test_a_dry_run_shows_the_plan_and_every_request_and_makes_nothing(ec2: Front, parcae: Command) -> None:
    """Price, time, liveput and the exact arguments; afterwards the account is as it was."""
    ec2.prices.update(dict.fromkeys([("g4dn.xlarge", f"us-east-1{zone}") for zone in "abcdef"], 0.21))
    common = (
        "launch",
        "gpt-tiny",
        "--cloud",
        "aws",
        "--fleet",
        str(parcae.fleet),
        "--nodes",
        "4",
        "--dry-run",
    )
    code, said = parcae.run(*common, "--json")
    assert code == 0, said
    plan = json.loads(said)["plan"]
    assert plan["expected"]["usd_per_hour"] == pytest.approx(0.84)
    assert plan["expected"]["liveput"] > 0
    calls = [request["call"] for request in plan["requests"]]
    assert calls[0] == "import_key_pair"
    assert calls[-2:] == ["create_launch_template", "create_fleet"]
    assert not any(action.startswith(("Create", "Import", "Run")) for action, _ in ec2.calls)
    code, said = parcae.run(*common, "--max-price-per-hour", "0.5")
    assert code == 0, said
    assert "2 x T4 in us-east-1" in said
    code, said = parcae.run(*common, "--max-price-per-hour", "0.25")
    assert code == 2
    assert "stage 0 needs" in said

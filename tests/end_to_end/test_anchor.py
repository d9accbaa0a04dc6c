"""A job whose launcher and backup live on a machine rented for them: `--anchor cloud`, at each cloud."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from runtime.control.job.journal import Journal
from tests.cloud.aws.conftest import ec2, endpoint  # noqa: F401
from tests.cloud.aws.front import ACCOUNT, Front
from tests.cloud.gcp.conftest import compute  # noqa: F401
from tests.cloud.gcp.fake_compute import FakeCompute
from tests.end_to_end.gcp_machines import GcpMachines, LaunchGate, gcp_fleet
from tests.end_to_end.harness import lines, processes_of, train
from tests.end_to_end.machines import Machines, zygote
from tests.end_to_end.test_aws import fleet
from tests.end_to_end.test_aws_faults import Command, Gate, events, until

pytestmark = pytest.mark.timeout(240)
STEPS = 30
SEED = 11


class Site(Protocol):
    """A cloud that rents anchors; `kind` and prices (USD an hour) are its cheapest anchor's and a node's."""

    cloud: str
    parcae: Command
    machines: Any
    kind: str
    usd_per_hour: float
    node_usd_per_hour: float
    account: str  # the key without which an anchor is refused
    call: str  # of a dry run, that rents the anchor

    def live(self) -> list[Any]:
        """What costs money."""

    def gate(self) -> Any:
        """Holds the answer to the call that rents the anchor: `entered` and `open`."""

    def rented(self) -> int:
        """How many anchors were asked for; each is on demand, and can be traced to us."""

    def traces(self) -> list[str]:
        """What an anchor would leave in the account beside itself."""


class Ec2:
    """EC2, with an instance profile that the account has."""

    cloud, kind, usd_per_hour, node_usd_per_hour = "aws", "m6i.large", 0.096, 0.2
    account, call = "anchor_profile", "run_instances"

    def __init__(self, front: Front, folder: Path) -> None:
        from moto.iam import iam_backends

        self._front = front
        self.machines = Machines(front, folder / "machines")
        self.machines.zygote = zygote()
        backend = iam_backends[ACCOUNT]["aws"]
        if "launcher" not in {one.name for one in backend.get_instance_profiles()}:
            backend.create_instance_profile("launcher", "/", [])
        own = {self.account: "launcher", "anchor_packages": [], "anchor_python": sys.executable}
        self.parcae = Command(folder, {**fleet(self.machines), **own})

    def live(self) -> list[Any]:
        return self._front.live()

    def gate(self) -> Gate:
        return Gate(self._front, "RunInstances", after=True)

    def rented(self) -> int:
        asked = self._front.actions("RunInstances")
        assert all("InstanceMarketOptions" not in one and one["TagSpecifications"] for one in asked)
        return len(asked)

    def traces(self) -> list[str]:
        names = {request["KeyName"] for request in self._front.actions("RunInstances")}
        return sorted(names & set(self._front.backend.key_pairs))


class Google:
    """Compute Engine, with a service account."""

    cloud, kind, usd_per_hour, node_usd_per_hour = "gcp", "e2-standard-2", 0.067, 0.3
    account, call = "anchor_account", "regionInstances.bulkInsert"

    def __init__(self, fake: FakeCompute, folder: Path) -> None:
        self._fake = fake
        self.machines = GcpMachines(fake, folder / "machines")
        self.machines.zygote = zygote()
        own = {self.account: "default", "anchor_packages": [], "anchor_python": sys.executable}
        self.parcae = Command(folder, gcp_fleet(**own))

    def live(self) -> list[Any]:
        return self._fake.live()

    def gate(self) -> Any:
        return LaunchGate(self._fake)

    def rented(self) -> int:
        made = [self._fake.made[name] for name in self.machines.anchors]
        assert all(one["scheduling"]["provisioningModel"] == "STANDARD" for one in made)
        assert all(one["labels"]["parcae-role"] == "anchor" for one in made)
        return len(made)

    def traces(self) -> list[str]:
        return []


@pytest.fixture(params=["aws", "gcp"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """Each in turn; switched off in the end, with no process left."""
    made: Site
    if request.param == "aws":
        made = Ec2(request.getfixturevalue("ec2"), tmp_path)
    else:
        made = Google(request.getfixturevalue("compute"), tmp_path)
    yield made
    made.parcae.close()
    assert made.machines.close() == []
    assert processes_of(tmp_path) == []


def options(site: Site) -> tuple[str, ...]:
    """A job on two nodes at an anchor."""
    fleet_file = str(site.parcae.fleet)
    return ("--cloud", site.cloud, "--anchor", "cloud", "--yes", "--fleet", fleet_file, "--nodes", "2")


def launch(site: Site, *more: str) -> Any:
    """It is named `job`."""
    return site.parcae.start(
        "launch", "gpt-tiny", "--name", "job", "--seed", str(SEED), *options(site), *more
    )


def test_training_goes_on_at_the_anchor_when_the_launching_machine_is_gone(
    site: Site, tmp_path: Path
) -> None:
    """The local process is killed in mid-training; a later one follows, and the weights are a quiet run's.

    The later one comes in mid-training, too (gcp), or finds the job done (aws): the result is the same. The
    anchor is rented on demand, and is gone at the end with all that it rented.
    """
    job = launch(site, "--steps", str(STEPS))
    until(lambda: any(event["kind"] == "started" for event in events(site.parcae.home)), 60)
    job.kill()
    job.wait(10)
    assert site.rented() == 1
    (anchor,) = site.machines.anchors
    home = site.machines.nodes[anchor].folder
    there = home / "parcae" / "jobs" / "job" / "metrics.jsonl"
    seen = len(lines(there))
    until(lambda: len(lines(there)) > seen)  # training goes on
    if site.cloud == "aws":
        until(lambda: state_of_job(home / "parcae") == "done", 60)
        code, said = site.parcae.run("status", "job", "--json")
        assert (code, "its anchor costs money" in said) == (0, True), said
    process = site.parcae.start("resume", "job", "--json")
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, f"exit code {process.returncode}\nstdout: {out}\nstderr: {err}"
    result = json.loads(out)
    assert (result["state"], result["steps"]) == ("done", STEPS), err
    quiet = train(tmp_path, "quiet", model="gpt-tiny", nodes=2, steps=STEPS, seed=SEED, template=template())
    assert result["weights_sha256"] == quiet.result.weights_sha256
    assert result["final_loss"] == quiet.result.final_loss
    assert [line["loss"] for line in lines(tmp_path / "jobs" / "job" / "metrics.jsonl")] == quiet.losses
    assert (site.live(), site.traces()) == ([], [])
    journal = Journal(tmp_path)
    assert journal.job("job").state == "done"
    assert any(event.text == "the anchor is given back" for event in journal.events("job", 100))
    journal.close()


def state_of_job(home: Path) -> str:
    """As the journal below `home` has it."""
    journal = Journal(home)
    try:
        return str(journal.job("job").state)
    finally:
        journal.close()


def template() -> dict[str, Any]:
    """gpt-tiny as the command trains it."""
    from parcae_cli.catalogue import load_template

    return load_template("gpt-tiny")


def test_ctrl_c_or_kill_while_an_anchor_is_rented_and_down_leave_nothing(site: Site) -> None:
    """It is being rented: what that brings is ended, by the launcher or, after kill -9, by `resume`.

    `down` ends a job whose anchor does not answer.
    """
    parcae = site.parcae
    gate = site.gate()
    job = launch(site, "--steps", "100000")
    assert gate.entered.wait(20)
    job.send_signal(signal.SIGINT)
    gate.open.set()
    _, err = job.communicate(timeout=40)
    assert (job.returncode, site.live()) == (130, []), err
    assert parcae.run("down", "job")[0] == 0

    gate = site.gate()
    killed = parcae.start("launch", "gpt-tiny", *options(site), "--name", "killed")
    assert gate.entered.wait(20)
    killed.kill()
    killed.wait(10)
    gate.open.set()
    until(lambda: len(site.live()) == 1)
    code, said = parcae.run("resume", "killed")
    assert (code, site.live(), "never began at its anchor" in said) == (1, [], True), said

    settings = [*options(site), "--steps", "100000", "--name", "again", "--detach"]
    code, said = parcae.run("launch", "gpt-tiny", *settings)
    assert code == 0, said
    until(lambda: any(event["kind"] == "started" for event in events(parcae.home, "again")), 60)
    code, said = parcae.run("gc")
    assert (code, len(site.live())) == (0, 3), said  # a job that lives there is left alone
    code, said = parcae.run("status", "again", "--json")
    status = json.loads(said[said.index("{") :])
    assert (code, status["launcher_alive"]) == (0, True), said
    assert status["usd_per_hour"] == pytest.approx(2 * site.node_usd_per_hour + site.usd_per_hour)
    site.machines.deafen(site.machines.anchors[-1])
    code, said = parcae.run("down", "again")
    assert (code, site.live()) == (0, []), said


def test_a_dry_run_shows_the_anchor_and_without_an_account_it_is_refused(site: Site) -> None:
    """Its request, type and price are in the plan, and nothing is rented."""
    common = ("launch", "gpt-tiny", *options(site), "--dry-run", "--json")
    code, said = site.parcae.run(*common)
    assert code == 0, said
    plan = json.loads(said)["plan"]
    assert (plan["anchor"]["instance_type"], plan["anchor"]["usd_per_hour"]) == (site.kind, site.usd_per_hour)
    assert plan["expected"]["usd_per_hour"] == pytest.approx(2 * site.node_usd_per_hour + site.usd_per_hour)
    assert site.call in [request["call"] for request in plan["requests"]]
    settings = site.parcae.fleet.read_text().splitlines()
    site.parcae.fleet.write_text("\n".join(line for line in settings if not line.startswith(site.account)))
    code, said = site.parcae.run(*common)
    assert code == 2
    assert site.account in said
    assert site.live() == []

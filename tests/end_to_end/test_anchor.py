"""A job whose launcher and backup live on a machine that is rented for them: `--anchor cloud` at EC2."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.control.job.journal import Journal
from tests.cloud.aws.conftest import ec2, endpoint  # noqa: F401
from tests.cloud.aws.front import ACCOUNT, Front
from tests.end_to_end.harness import lines, train
from tests.end_to_end.machines import Machines
from tests.end_to_end.test_aws import machines  # noqa: F401
from tests.end_to_end.test_aws_faults import Command, Gate, events, parcae, until  # noqa: F401

# ruff: noqa: F811
pytestmark = pytest.mark.timeout(240)
STEPS = 30
SEED = 11


@pytest.fixture
def anchored(ec2: Front, parcae: Command) -> Command:
    """With an instance profile that the account has, and this Python for the anchor."""
    from moto.iam import iam_backends

    backend = iam_backends[ACCOUNT]["aws"]
    if "launcher" not in {one.name for one in backend.get_instance_profiles()}:
        backend.create_instance_profile("launcher", "/", [])
    own = {"anchor_profile": "launcher", "anchor_packages": [], "anchor_python": sys.executable}
    rest = [line for line in parcae.fleet.read_text().splitlines() if line.partition(" = ")[0] not in own]
    parcae.fleet.write_text(
        "\n".join([*(f"{key} = {json.dumps(value)}" for key, value in own.items()), *rest])
    )
    return parcae


def launch(parcae: Command, *more: str) -> Any:
    """The job `job` on two nodes, at an anchor."""
    settings = ("--cloud", "aws", "--anchor", "cloud", "--yes", "--fleet", str(parcae.fleet), "--nodes", "2")
    return parcae.start("launch", "gpt-tiny", "--name", "job", "--seed", str(SEED), *settings, *more)


def test_training_goes_on_at_the_anchor_when_the_launching_machine_is_gone(
    ec2: Front, machines: Machines, anchored: Command, tmp_path: Path
) -> None:
    """The local process is killed in mid-training; a later one follows, and the weights are a quiet run's.

    The anchor is rented on demand, and is gone at the end with all that it rented.
    """
    job = launch(anchored, "--steps", str(STEPS))
    until(lambda: any(event["kind"] == "started" for event in events(anchored.home)), 60)
    job.kill()
    job.wait(10)
    (request,) = ec2.actions("RunInstances")
    assert "InstanceMarketOptions" not in request
    (anchor,) = machines.anchors
    home = machines.nodes[anchor].folder
    there = home / "parcae" / "jobs" / "job" / "metrics.jsonl"
    seen = len(lines(there))
    until(lambda: len(lines(there)) > seen)  # training goes on
    out, err = anchored.start("resume", "job", "--json").communicate(timeout=90)
    result = json.loads(out)
    assert (result["state"], result["steps"]) == ("done", STEPS), err
    quiet = train(tmp_path, "quiet", model="gpt-tiny", nodes=2, steps=STEPS, seed=SEED, template=template())
    assert result["weights_sha256"] == quiet.result.weights_sha256
    assert result["final_loss"] == quiet.result.final_loss
    assert [line["loss"] for line in lines(tmp_path / "jobs" / "job" / "metrics.jsonl")] == quiet.losses
    assert ec2.live() == []
    assert ec2.backend.key_pairs == {} or all(name != request["KeyName"] for name in ec2.backend.key_pairs)
    journal = Journal(tmp_path)
    assert journal.job("job").state == "done"
    assert any(event.text == "the anchor is given back" for event in journal.events("job", 100))
    journal.close()


def template() -> dict[str, Any]:
    """gpt-tiny as the command trains it."""
    from parcae_cli.catalogue import load_template

    return load_template("gpt-tiny")


def test_ctrl_c_while_an_anchor_is_rented_and_down_leave_nothing(
    ec2: Front, machines: Machines, anchored: Command
) -> None:
    """RunInstances is under way: what it brings is ended. `down` ends a job whose anchor does not answer."""
    gate = Gate(ec2, "RunInstances", after=True)
    job = launch(anchored, "--steps", "100000")
    assert gate.entered.wait(20)
    job.send_signal(signal.SIGINT)
    gate.open.set()
    _, err = job.communicate(timeout=40)
    assert (job.returncode, ec2.live()) == (130, []), err
    assert anchored.run("down", "job")[0] == 0

    arguments = ["launch", "gpt-tiny", "--cloud", "aws", "--anchor", "cloud", "--yes", "--nodes", "2"]
    settings = ["--fleet", str(anchored.fleet), "--steps", "100000", "--name", "again", "--detach"]
    code, said = anchored.run(*arguments, *settings)
    assert code == 0, said
    until(lambda: any(event["kind"] == "started" for event in events(anchored.home, "again")), 60)
    code, said = anchored.run("gc")
    assert (code, len(ec2.live())) == (0, 3), said  # a job that lives there is left alone
    code, said = anchored.run("status", "again", "--json")
    status = json.loads(said[said.index("{") :])
    assert (code, status["launcher_alive"]) == (0, True), said
    assert status["usd_per_hour"] == pytest.approx(2 * 0.2 + 0.096)
    machines.deafen(machines.anchors[-1])
    code, said = anchored.run("down", "again")
    assert (code, ec2.live()) == (0, []), said


def test_a_dry_run_shows_the_anchor_and_without_a_profile_it_is_refused(
    ec2: Front, anchored: Command
) -> None:
    """Its request, type and price are in the plan, and nothing is rented."""
    common = (
        "launch",
        "gpt-tiny",
        "--cloud",
        "aws",
        "--anchor",
        "cloud",
        "--nodes",
        "2",
        "--dry-run",
        "--json",
    )
    code, said = anchored.run(*common, "--fleet", str(anchored.fleet))
    assert code == 0, said
    plan = json.loads(said)["plan"]
    assert (plan["anchor"]["instance_type"], plan["anchor"]["usd_per_hour"]) == ("m6i.large", 0.096)
    assert plan["expected"]["usd_per_hour"] == pytest.approx(2 * 0.2 + 0.096)
    assert "run_instances" in [request["call"] for request in plan["requests"]]
    code, said = anchored.run(*common)
    assert code == 2
    assert "anchor_profile" in said
    assert ec2.actions("RunInstances") == []

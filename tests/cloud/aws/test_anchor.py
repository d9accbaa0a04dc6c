"""The anchor at EC2: rented in another zone, ended wherever its launch was cut off, gone after its job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloud.anchor import AnchorRecord
from cloud.aws.anchor import anchor_lives, end_anchor, rent_anchor
from cloud.aws.api import Api
from cloud.aws.market import subnets_by_zone
from cloud.provider import NoCapacityError
from parcae_cli import anchor as anchor_command
from runtime.control.anchor.report import PROBLEM
from runtime.control.job.journal import JobState, Journal
from runtime.control.providers.aws import anchor as plan_anchor
from tests.cli.conftest import Done, home, parcae  # noqa: F401
from tests.cloud.aws.front import ACCOUNT, Front
from tests.cloud.aws.serving import reset
from tests.cloud.aws.settings import aws_settings
from tests.cloud.aws.test_dry_run import job
from tests.cloud.test_every_crash import Hangman, Killed

# ruff: noqa: F811
KIND = "m6i.large"
MAKING = ("import_key_pair", "create_security_group", "authorize_security_group_ingress", "run_instances")


@pytest.fixture
def account(ec2: Front) -> Iterator[Front]:
    """It has the instance profile, and machines have addresses."""
    from moto.iam import iam_backends

    backend = iam_backends[ACCOUNT]["aws"]
    if "launcher" not in {one.name for one in backend.get_instance_profiles()}:
        backend.create_instance_profile("launcher", "/", [])
    ec2.on_launch = lambda instance: setattr(instance.nics[0], "public_ip", "127.0.0.1")
    yield ec2


def rent(folder: Path) -> AnchorRecord:
    """In the zones of the stand-in, one after another."""
    settings, api = aws_settings(anchor_profile="launcher"), Api(pause=lambda pause_s: None)
    subnets, _, vpc = subnets_by_zone(api, settings)
    zones = list(subnets.items())
    return rent_anchor(api, settings, folder, "job", KIND, 0.096, zones, vpc, pause=lambda pause_s: None)


def test_a_zone_without_the_type_sends_it_to_the_next(account: Front, tmp_path: Path) -> None:
    """One machine in the second zone; where no zone has one that is said, and nothing is left."""
    account.fault("RunInstances", "InsufficientInstanceCapacity", status=500)
    rented = rent(tmp_path / "a")
    first, second = account.actions("RunInstances")
    assert first["SubnetId"] != second["SubnetId"]
    assert first["ClientToken"] != second["ClientToken"]
    (machine,) = account.live()
    assert (rented.id, rented.zone) == (machine.id, machine.placement.zone)
    assert anchor_lives(tmp_path / "a")
    account.fault("RunInstances", "InsufficientInstanceCapacity", status=500, times=100)
    with pytest.raises(NoCapacityError, match=r"no zone has an m6i.large for the anchor \(us-east-1"):
        rent(tmp_path / "b")
    assert end_anchor(tmp_path / "b", 5.0) == []
    assert end_anchor(tmp_path / "a", 5.0) == [rented.id]
    assert not anchor_lives(tmp_path / "a")
    assert (account.live(), account.backend.key_pairs) == ([], {})


def test_an_answer_that_is_lost_rents_one_machine(account: Front, tmp_path: Path) -> None:
    """The launch was carried out, its answer broke: asked again under its token, it is the same machine."""
    account.fault("RunInstances", "InternalError", status=500, after=True)
    rented = rent(tmp_path)
    assert [one.id for one in account.live()] == [rented.id]
    assert end_anchor(tmp_path, 5.0) == [rented.id]


def cut_off(monkeypatch: pytest.MonkeyPatch, hangman: Hangman, rent: Callable[[], Any]) -> None:
    """Rent, and be killed at a call."""
    with monkeypatch.context() as patch:
        around = hangman.around(Api.call, lambda self, operation, *_: str(operation))
        patch.setattr(Api, "call", lambda self, *arguments: around(self, *arguments))
        try:
            rent()
        except Killed:
            assert hangman.dead


def test_a_launch_that_was_killed_at_any_call_leaves_nothing(
    account: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 before and after each call: whoever ends it finds it, also while no sweep shows it yet."""
    whole = Hangman()
    cut_off(monkeypatch, whole, lambda: rent(tmp_path / "whole"))
    assert list(dict.fromkeys(whole.calls)) == list(MAKING)
    assert len(end_anchor(tmp_path / "whole", 5.0)) == 1
    account.invisible_s = 0.2
    moments = [(number, True) for number in range(len(whole.calls))]
    for number, after in [*moments, (whole.calls.index("run_instances"), False)]:
        reset()  # else what is there is not made again
        folder, hangman = tmp_path / f"{number}{after}", Hangman(number, after)
        cut_off(monkeypatch, hangman, lambda folder=folder: rent(folder))  # type: ignore[misc]
        assert hangman.dead
        came = {one.id for one in account.live()}
        assert len(came) == (hangman.calls[number] == "run_instances" and after)
        assert came <= set(end_anchor(folder, 5.0))
        assert account.live() == []
        assert end_anchor(folder, 5.0) == []


@pytest.mark.parametrize("verb", ["down", "resume", "gc"])
@pytest.mark.parametrize("after", [False, True])
def test_whoever_looks_after_a_killed_launch_ends_what_it_rented(
    account: Front, home: Path, parcae: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, verb: str,
    after: bool,
) -> None:  # fmt: skip
    """The launcher here dies as EC2 is asked for the anchor: no command leaves any of it."""
    request, spec = job(home, "cloud", anchor_profile="launcher")
    journal = Journal(home)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(20)
    plan = plan_anchor(request, spec, journal.job_folder("job"))
    journal.create_job("job", request.as_json(), gone.pid)
    hangman = Hangman(MAKING.index("run_instances") + 1, after)  # there are two rules
    cut_off(monkeypatch, hangman, plan.rent)
    assert hangman.calls[-1] == "run_instances"
    assert len(account.live()) == after
    account.invisible_s = 0.3
    done = parcae(verb, "job") if verb != "gc" else parcae("gc")
    assert account.live() == [], done
    if verb == "resume":
        assert (done.code, "never began at its anchor" in done.err) == (1, True), done
    else:
        assert done.code == 0, done
    again = parcae("resume", "job")
    assert again.code in (1, 2) and "Traceback" not in again.err
    assert parcae("gc").code == 0
    assert (account.live(), account.backend.key_pairs) == ([], {})
    journal.close()


class Pause:
    """The wait for somebody who fetches the results; the test decides how long it lasts."""

    def __init__(self) -> None:
        self.began, self.over = threading.Event(), threading.Event()
        self.asked_s: list[float] = []

    def wait(self, timeout_s: float) -> bool:
        """As an event's."""
        self.asked_s.append(timeout_s)
        self.began.set()
        return self.over.wait(30)


@pytest.mark.parametrize("taken_over", [False, True])
def test_results_are_kept_for_a_while_and_then_the_machine_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_over: bool
) -> None:
    """The job has ended and nobody follows: results are kept for `anchor_linger_s`, then the lease goes.

    Without it the dead man's switch ends the machine; if somebody goes on with the job meanwhile it stays.
    """
    lease, pause = tmp_path / "lease", Pause()
    monkeypatch.setenv("PARCAE_LEASE_FILE", str(lease))
    monkeypatch.setattr(anchor_command, "threading", SimpleNamespace(Event=lambda: pause))

    def run(request: Any) -> None:
        journal = Journal(tmp_path)
        journal.create_job("job", {}, os.getpid())
        journal.event("job", 1.0, "ended", "the end")
        journal.set_job_state("job", JobState.DONE, {"steps": 3})
        journal.close()

    monkeypatch.setattr("runtime.control.job.launch.run", run)
    request, _ = job(tmp_path)
    (tmp_path / "request.json").write_text(json.dumps({"request": request.as_json(), "linger_s": 77.0}))
    codes: list[int] = []
    worker = threading.Thread(target=lambda: codes.append(anchor_command.work(tmp_path, "job")))
    worker.start()
    assert pause.began.wait(30)
    assert lease.exists()
    told = anchor_command.answer(tmp_path, "report", "job", {})
    assert (told["job"]["state"], told["job"]["result"]) == ("done", {"steps": 3})
    assert [event["text"] for event in told["events"]] == ["the end"]
    if taken_over:
        journal = Journal(tmp_path)
        assert journal.take_over(journal.job("job"), 1, {})
        journal.close()
    pause.over.set()
    worker.join(30)
    assert (codes, pause.asked_s) == ([0], [77.0])
    assert lease.exists() is taken_over
    assert not (tmp_path / "jobs/job" / PROBLEM).exists()


def test_a_launch_that_fails_at_the_anchor_is_told_and_lets_the_machine_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the job was in the journal there: the line and the exit code are kept for whoever asks."""
    lease, pause = tmp_path / "lease", Pause()
    pause.over.set()
    monkeypatch.setenv("PARCAE_LEASE_FILE", str(lease))
    monkeypatch.setattr(anchor_command, "threading", SimpleNamespace(Event=lambda: pause))

    def run(request: Any) -> None:
        raise NoCapacityError("aws: no capacity anywhere")

    monkeypatch.setattr("runtime.control.job.launch.run", run)
    request, _ = job(tmp_path)
    (tmp_path / "request.json").write_text(json.dumps({"request": request.as_json(), "linger_s": 5.0}))
    assert anchor_command.work(tmp_path, "job") == 3
    told = anchor_command.answer(tmp_path, "report", "job", {})
    assert told["problem"] == {"code": 3, "line": "aws: no capacity anywhere"}
    assert (pause.asked_s, lease.exists()) == ([5.0], False)

"""`parcae down` ends jobs, sweeps what crashes left, may be repeated, and says when it cannot be sure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud.types import Instance, InstanceState, Pool
from parcae_cli.commands import down
from runtime.control.job.journal import Journal
from tests.cli.conftest import Done

Run = Callable[..., Done]

# A launcher that ends when it is asked to, and says so in the journal, like a real one.
OBEDIENT = """
import os, signal, sys
from pathlib import Path
from runtime.control.job.journal import Journal
journal = Journal(Path(sys.argv[1]))
def stop(*_):
    journal.set_job_state("job", "interrupted")
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
journal.create_job("job", {}, os.getpid())
journal.set_job_state("job", "running")
print("ready", flush=True)
while True:
    signal.pause()
"""
STUBBORN = OBEDIENT.replace("signal.SIGTERM, stop", "signal.SIGTERM, signal.SIG_IGN")


@pytest.fixture
def launcher(journal: Journal) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a launcher and returns when its job runs; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(journal.home)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(timeout=10)


def test_down_without_jobs_finds_nothing(parcae: Run, home: Path) -> None:
    """It is no error, makes no journal, and says so in both forms."""
    assert parcae("down").out == "nothing is running\n"
    assert json.loads(parcae("down", "--all", "--json").out) == {
        "jobs": [],
        "nothing_running": True,
        "may_be_running": [],
    }
    assert not home.exists()


def test_down_asks_the_launcher_and_may_be_repeated(
    parcae: Run, journal: Journal, launcher: Callable
) -> None:
    """A launcher that stops when asked leaves nothing to do; the second time nothing is running."""
    process = launcher(OBEDIENT)
    done = parcae("down")
    assert (done.code, done.out) == (0, "job job is down (interrupted)\n")
    assert process.wait(timeout=10) == 130
    again = parcae("down", "job")
    assert (again.code, again.out) == (0, "nothing is running\n")


def test_down_kills_a_launcher_that_does_not_listen(
    parcae: Run, journal: Journal, launcher: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the deadline the launcher is killed, and its job recorded as interrupted."""
    monkeypatch.setattr(down, "STOP_TIMEOUT_S", 0.2)
    process = launcher(STUBBORN)
    assert parcae("down", "--all").code == 0
    assert process.wait(timeout=10) == -9
    assert journal.job("job").state == "interrupted"


def test_down_never_touches_a_process_that_only_has_the_number(
    parcae: Run, journal: Journal, launcher: Callable
) -> None:
    """A pid that was given to another process since is left alone; the job is closed all the same."""
    process = launcher(OBEDIENT)
    journal._db.execute("UPDATE jobs SET pid_start = pid_start - 1")
    done = parcae("down")
    assert (done.code, journal.job("job").state) == (0, "interrupted")
    assert process.poll() is None


def test_down_records_the_end_of_instances(parcae: Run, journal: Journal) -> None:
    """What an abandoned job held is written off once nothing of it is left."""
    journal.create_job("job", {}, 2**22 + 1)
    pool = Pool("local", "process", 1, 0.9, 3.0)
    journal.put_instance("job", Instance("i-1", "i1", "job", "t", pool, InstanceState.RUNNING, 1.0), [])
    found = json.loads(parcae("down", "--json").out)
    assert found["jobs"] == [
        {"job": "job", "state": "interrupted", "was_running": True, "killed": [], "doubtful": []}
    ]
    assert journal.instances(live_only=True) == []


def test_down_exits_5_and_keeps_the_job_open_when_in_doubt(
    parcae: Run, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be proven to be gone is named, and the job stays on the list for the next try."""
    journal.create_job("job", {}, 2**22 + 1)
    monkeypatch.setattr(down, "_sweep", lambda folder: (["worker 12"], ["agent 34"]))
    done = parcae("down", "--json")
    assert done.code == 5
    assert json.loads(done.out)["may_be_running"] == ["job: agent 34"]
    assert "agent 34" in done.err
    assert journal.job("job").state == "starting"
    monkeypatch.setattr(down, "_sweep", lambda folder: ([], []))
    assert parcae("down").code == 0
    assert journal.job("job").state == "interrupted"


def test_down_with_several_jobs_wants_a_name(parcae: Run, journal: Journal) -> None:
    """It does not guess which of two jobs is meant."""
    journal.create_job("one", {}, os.getpid())
    journal.create_job("two", {}, os.getpid())
    done = parcae("down")
    assert done.code == 2
    assert "one, two" in done.err


def test_down_sweeps_processes_that_a_crash_left(parcae: Run, journal: Journal) -> None:
    """A recorded process group of a job whose launcher was killed is found and killed."""
    from cloud.processes import Register

    journal.create_job("job", {}, 2**22 + 1)
    node = journal.job_folder("job") / "nodes" / "i1.1"
    node.mkdir(parents=True)
    left = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    Register(node / "pgids").enter("worker", left.pid)
    done = parcae("down")
    assert done.code == 0
    assert f"worker {left.pid} of i1.1" in done.out
    assert left.wait(timeout=10) == -9
    assert parcae("down").out == "nothing is running\n"

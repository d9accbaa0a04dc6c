"""However a launch is ended, nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud.processes import start_ticks
from runtime.control.fleet.link_times import LinkTimes
from runtime.control.job.journal import Journal
from tests.end_to_end.harness import STEPS, Finished, lines, processes_of

DEADLINE_S = 60.0
PARCAE = [sys.executable, "-P", "-m", "parcae_cli.main"]

MOMENTS: dict[str, Callable[[Path], bool]] = {
    "the journal is there": lambda home: (home / "journal.db").exists(),
    "the first node boots": lambda home: any(home.glob("jobs/cut/nodes/node*")),
    "an agent runs": lambda home: any(home.glob("jobs/cut/nodes/node*/agent.json")),
    "training runs": lambda home: any(path.stat().st_size for path in home.glob("jobs/cut/metrics.jsonl")),
}


def launch_until(home: Path, reached: Callable[[Path], bool]) -> subprocess.Popen[str]:
    launch = subprocess.Popen(
        [*PARCAE, "launch", "gpt-tiny", "--nodes", "3", "--steps", "100000", "--name", "cut"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PARCAE_HOME": str(home)},
        cwd=home,
    )
    deadline_s = time.monotonic() + DEADLINE_S
    while not reached(home):
        assert time.monotonic() < deadline_s, "the moment never came"
        assert launch.poll() is None, launch.communicate()
        time.sleep(0.002)
    return launch


def down(home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PARCAE, "down", "--all"],
        capture_output=True,
        text=True,
        env={**os.environ, "PARCAE_HOME": str(home)},
        cwd=home,
        timeout=DEADLINE_S,
    )


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_launch_leaves_nothing(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    """Whenever it comes, an interrupt ends every process, exits with 130, and leaves nothing for `down`."""
    launch = launch_until(tmp_path, MOMENTS[moment])
    launch.send_signal(number)
    _, said = launch.communicate(timeout=DEADLINE_S)
    assert "Traceback" not in said
    assert launch.returncode == 130, said
    assert processes_of(tmp_path) == []
    done = down(tmp_path)
    assert (done.returncode, done.stdout) == (0, "nothing is running\n")


def test_a_killed_launcher_is_swept_up_by_down(tmp_path: Path) -> None:
    """SIGKILL to the launcher: `down` ends what is left and says so; a second `down` finds nothing."""
    launch = launch_until(tmp_path, MOMENTS["training runs"])
    assert start_ticks(launch.pid) is not None
    launch.kill()
    launch.communicate(timeout=DEADLINE_S)
    done = down(tmp_path)
    assert done.returncode == 0, done.stderr
    assert processes_of(tmp_path) == []
    again = down(tmp_path)
    assert (again.returncode, again.stdout) == (0, "nothing is running\n")
    journal = Journal(tmp_path)
    assert journal.job("cut").state.ended
    journal.close()


def test_a_launcher_that_was_stopped_blames_nobody(undisturbed: Finished, tmp_path: Path) -> None:
    """As when a laptop sleeps: longer than a heartbeat, in mid-step; nodes hold, and the job goes on."""
    command = [sys.executable, "-m", "tests.end_to_end.killed_launcher", str(tmp_path), "never", "0"]
    launch = subprocess.Popen([*command, json.dumps({"nodes": 4, "steps": STEPS})])
    job = tmp_path / "jobs" / "cut"
    try:
        deadline_s = time.monotonic() + DEADLINE_S
        while not (job / "metrics.jsonl").exists() or len(lines(job / "metrics.jsonl")) < 10:
            assert time.monotonic() < deadline_s and launch.poll() is None
            time.sleep(0.01)
        os.kill(launch.pid, signal.SIGSTOP)
        time.sleep(LinkTimes().grace_s + 1.5)
        os.kill(launch.pid, signal.SIGCONT)
        assert launch.wait(DEADLINE_S) == 0
    finally:
        launch.kill()
        launch.wait(DEADLINE_S)
    events = lines(job / "events.jsonl")
    assert [row["loss"] for row in lines(job / "metrics.jsonl")] == undisturbed.losses
    assert any("was not running" in event["text"] for event in events)
    assert not [event for event in events if event["kind"] in ("lost", "failed", "rollback")]
    journal = Journal(tmp_path)
    result = journal.job("cut").result
    journal.close()
    assert result is not None and result["weights_sha256"] == undisturbed.result.weights_sha256
    assert processes_of(tmp_path) == []

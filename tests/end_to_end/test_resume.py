"""kill -9 of the launcher at any moment: `parcae resume` goes on, and the weights do not show it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloud.local.sweep import sweep
from runtime.control.job.journal import Journal
from runtime.control.job.launch import resume
from runtime.control.job.past import NotResumableError
from tests.end_to_end.harness import Finished, lines, processes_of
from tests.end_to_end.killed_launcher import OPTIONS

pytestmark = pytest.mark.timeout(240)
WITHIN_S = 60.0
WAYS: dict[str, dict[str, Any]] = {
    "checkpoint": {"policy": "checkpoint", "checkpoint_every": 10},
    "reactive, two GPUs a node, no backup": {
        "policy": "reactive",
        "nodes": 3,
        "gpus_per_node": 2,
        "backup": "none",
    },
    "gradients": {"backup": "gradients"},
}


def killed(home: Path, moment: str, step: int, options: dict[str, Any] | None = None) -> int:
    """Run a launcher that is killed at the moment; how many steps the disk says are committed.

    `options` are the new job's, in place of a local one's with checkpoints.
    """
    command = [sys.executable, "-m", "tests.end_to_end.killed_launcher", str(home), moment, str(step)]
    command += [] if options is None else [json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, env=dict(os.environ))
    assert done.returncode == -9, done.stderr
    return len(lines(home / "jobs/cut/metrics.jsonl"))


def workers(home: Path) -> set[int]:
    """The workers that the job's nodes hold now."""
    journal = Journal(home)
    rows = journal.instances("cut", live_only=True)
    journal.close()
    return {pid for row in rows for pid in row.pgids[1:]}


def finished(home: Path, run: Finished, undisturbed: Finished) -> None:
    """What must hold of a job that was resumed, whatever happened to it."""
    assert run.result.state == "done", run.result.why
    assert (run.result.samples_lost, run.result.samples_repeated) == (0, 0)
    assert run.losses == undisturbed.losses
    assert [row["step"] for row in run.metrics] == list(range(OPTIONS["steps"]))
    assert run.result.weights_sha256 == undisturbed.result.weights_sha256
    journal = Journal(home)
    assert journal.open_intents("cut") == []
    assert journal.instances("cut", live_only=True) == []
    journal.close()
    assert processes_of(home / "jobs") == []


def go_on(home: Path) -> Finished:
    """To the end."""
    result = resume(home, "cut")
    folder = home / "jobs/cut"
    return Finished(result, lines(folder / "metrics.jsonl"), lines(folder / "events.jsonl"))


def test_a_launcher_is_killed_five_times(undisturbed: Finished, tmp_path: Path) -> None:
    """At five moments of one job, each time after the last was resumed; living workers are never replaced.

    Between a decision and its word; when one worker has heard it; with a generation just begun; while
    survivors of a loss report; and after the last commit, before the weights' digest is known.
    """
    assert killed(tmp_path, "a step is decided", 10) == 11
    first = workers(tmp_path)
    assert len(first) == OPTIONS["nodes"]
    assert killed(tmp_path, "one worker is told", 20) == 21
    assert workers(tmp_path) == first
    assert killed(tmp_path, "a generation is begun", 30) >= 30
    assert killed(tmp_path, "survivors report", 45) >= 45
    assert killed(tmp_path, "all is committed", 60) == 60
    run = go_on(tmp_path)
    finished(tmp_path, run, undisturbed)
    resumed = [event for event in run.events if event["kind"] == "resumed"]
    assert [event["text"] for event in resumed[:2]] == ["at step 11", "at step 21"]
    assert len(resumed) == 5
    assert not any(event["kind"] == "rollback" for event in run.events)
    assert (tmp_path / "checkpoints/step-60").exists()
    assert run.events[-1]["time_s"] - resumed[-1]["time_s"] < 30  # nobody waits for a dead launcher's copy
    assert run.result.usd > 0
    with pytest.raises(NotResumableError, match="is done"):
        resume(tmp_path, "cut")


def test_without_nodes_a_job_goes_on_from_its_checkpoint(undisturbed: Finished, tmp_path: Path) -> None:
    """The launcher is killed and then every node: steps after the checkpoint are done again, once."""
    assert killed(tmp_path, "a step is decided", 35) == 36
    _, doubtful = sweep(tmp_path / "jobs/cut")
    assert doubtful == ()
    run = go_on(tmp_path)
    finished(tmp_path, run, undisturbed)
    (back,) = [event for event in run.events if event["kind"] == "rollback"]
    assert "back to step 20" in back["text"]


@pytest.mark.parametrize("way", WAYS)
def test_other_policies_backups_and_nodes_are_resumed_too(
    undisturbed: Finished, tmp_path: Path, way: str
) -> None:
    """Killed when one worker has heard of a step, and over the loss of a node: equal weights.

    Living workers go on with what they hold; the policy checkpoint goes back to the disk after the loss, and
    where every node dies with the launcher and nothing is on the disk, the first step comes again.
    """
    options = OPTIONS | WAYS[way]
    restarts, follows = way == "checkpoint", way == "gradients"
    assert killed(tmp_path, "one worker is told", 14, options) == 15
    assert len(workers(tmp_path)) == options["nodes"] * options.get("gpus_per_node", 1)
    assert killed(tmp_path, "everybody starts anew" if restarts else "survivors report", 35) >= 30
    if follows:
        assert sweep(tmp_path / "jobs/cut")[1] == ()
    run = go_on(tmp_path)
    finished(tmp_path, run, undisturbed)
    resumed = [event["text"] for event in run.events if event["kind"] == "resumed"]
    assert resumed[0] == "at step 15" and len(resumed) == 2
    back = {event["text"].partition(",")[0] for event in run.events if event["kind"] == "rollback"}
    assert back == ({"back to step 30"} if restarts else {"back to step 0"} if follows else set())

"""`parcae launch` as a user runs it: its result's contract, going to the background, Ctrl-C."""

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

from runtime.control.job.journal import Journal
from tests.cli.conftest import Done

Run = Callable[..., Done]

pytest.importorskip("torch", reason="training needs torch: pip install 'parcae-cli[train]'")


def test_launch_prints_one_json_object_and_progress_elsewhere(
    parcae_process: Run, home: Path, tmp_path: Path
) -> None:
    """The result keeps its contract; events go to stderr; a line a step is in metrics.jsonl."""
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 200)
    done = parcae_process(
        "launch", "gpt-tiny", "--nodes", "2", "--steps", "4", "--data", tmp_path / "*.txt", "--json"
    )
    assert done.code == 0, done.err
    result = json.loads(done.out)
    number = (int, float)
    for key, kind in {
        "job": str, "state": str, "steps": int, "samples": int, "samples_lost": int, "samples_repeated": int,
        "final_loss": number, "weights_sha256": str, "wall_s": number, "usd": number, "migrations": list,
    }.items():  # fmt: skip
        assert isinstance(result[key], kind), key
    assert (result["state"], result["steps"], result["samples_lost"]) == ("done", 4, 0)
    assert "training started" in done.err
    lines = (home / "jobs" / result["job"] / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(steps[0], steps[0] + 4))
    assert set(json.loads(lines[0])) >= {
        "step", "loss", "samples", "time_s", "generation", "pipelines", "stages",
    }  # fmt: skip


def test_a_detached_job_goes_on_until_down(parcae: Run, home: Path) -> None:
    """`--detach` returns while the job runs; status sees it, and down ends it and all its processes."""
    started = subprocess.run(
        [sys.executable, "-P", "-m", "parcae_cli.main", "launch", "gpt-tiny", "--nodes", "2",
         "--steps", "100000", "--name", "long", "--detach", "--json"],
        capture_output=True, text=True, timeout=60, env=os.environ,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    pid = json.loads(started.stdout)["pid"]
    shown = json.loads(parcae("status", "--json").out)
    assert (shown["job"], shown["launcher_alive"]) == ("long", True)
    done = parcae("down", "long")
    assert done.code == 0, done.err
    assert not Path(f"/proc/{pid}/exe").exists()
    assert json.loads(parcae("status", "--json").out)["state"] == "interrupted"
    assert parcae("down", "--all").out == "nothing is running\n"


def test_ctrl_c_ends_a_job_and_leaves_nothing(parcae: Run, home: Path) -> None:
    """An interrupt in full swing: code 130, one line, and nothing for down to find."""
    launch = subprocess.Popen(
        [sys.executable, "-P", "-m", "parcae_cli.main", "launch", "gpt-tiny", "--nodes", "2",
         "--steps", "100000", "--name", "cut"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    metrics = home / "jobs" / "cut" / "metrics.jsonl"
    deadline_s = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline_s, "the job did not begin to train"
        assert launch.poll() is None, launch.communicate()
        time.sleep(0.05)
    launch.send_signal(signal.SIGINT)
    _, said = launch.communicate(timeout=30)
    assert launch.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("parcae: interrupted: job cut after step ")
    journal = Journal(home)
    assert journal.job("cut").state == "interrupted"
    assert journal.instances(live_only=True) == []
    journal.close()
    assert parcae("down", "--all").out == "nothing is running\n"


def test_an_anchor_in_the_cloud_is_refused_where_it_cannot_be() -> None:
    """Clouds that rent nothing, other words, and folders of this machine: one line each."""
    import pytest

    from parcae_cli.errors import UsageError
    from parcae_cli.launch_checks import check_anchor

    check_anchor("here", "local", "folder", None)
    check_anchor("cloud", "aws", "s3://bucket/a", None, ["s3://bucket/b/*.bin"])
    check_anchor("cloud", "gcp", None, None)
    there, at_home = ("there", "aws", None, None), ("cloud", "hosts", None, None)
    for wrong in (
        there,
        at_home,
        ("cloud", "aws", "folder", None),
        ("cloud", "aws", None, None, ["my/*.txt"]),
    ):
        with pytest.raises(UsageError):
            check_anchor(*wrong)

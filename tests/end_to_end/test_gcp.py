"""A job on `--cloud gcp`: the real code, and a stand-in of Compute Engine whose instances are local nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parcae_cli.catalogue import load_fleet
from runtime.control.journal import Journal
from tests.cloud.gcp.conftest import compute  # noqa: F401
from tests.cloud.gcp.fake_compute import MACHINE_TYPE, FakeCompute
from tests.end_to_end.gcp_machines import GcpMachines
from tests.end_to_end.harness import Finished, processes_of, train

pytestmark = pytest.mark.timeout(240)  # workers load torch several times over
STEPS = 40


@pytest.fixture
def machines(compute: FakeCompute, tmp_path: Path) -> Iterator[GcpMachines]:  # noqa: F811
    """Switched off in the end; a dead node's processes must be gone by then."""
    made = GcpMachines(compute, tmp_path / "machines")
    yield made
    assert made.close() == []
    assert processes_of(tmp_path) == []


def gcp(home: Path, name: str, watch: Any = None, **options: Any) -> Finished:
    """Train gpt-tiny there, with the shipped settings, this Python, and times that suit a test."""
    times = {
        "retry_s": 0.2, "grace_s": 3, "describe_s": 0.3, "notice_poll_s": 0.2, "cool_down_s": 1, "boot_s": 60,
        "lease_s": 20, "close_s": 10,
    }  # fmt: skip
    settings = {
        **load_fleet("gcp"),
        "machine_types": [MACHINE_TYPE],
        "device": "model",
        "python": sys.executable,
        "packages": [],
        "times": times,
    }
    return train(home, name, watch, cloud="gcp", fleet=settings, steps=STEPS, **options)


def test_a_job_survives_preemptions(
    compute: FakeCompute,  # noqa: F811
    machines: GcpMachines,
    tmp_path: Path,
) -> None:
    """One node goes with a notice, one without; replacements come; the weights are those of a quiet run."""
    names: list[str] = []
    done: set[int] = set()

    def interfere(step: int, provider: Any) -> None:
        if not names:
            names.extend(machines.nodes)
        if step == 8 and 8 not in done:
            machines.notice(names[0], 1.5)
        if step == 20 and 20 not in done:  # steps come again after a rollback
            for name in [name for name in compute.live() if name not in (names[0], names[1])]:
                compute.preempt(name)
        done.add(step)

    run = gcp(tmp_path, "storm", interfere, nodes=3)
    assert run.result.state == "done", run.result.why
    assert (run.result.samples_lost, run.result.samples_repeated) == (0, 0)
    assert len(machines.nodes) >= 4
    assert len(machines.pids(names[1], "worker")) == 1
    assert any(event["kind"] == "notice" for event in run.events)
    assert compute.live() == []
    quiet = train(tmp_path, "quiet", nodes=3, steps=STEPS)
    assert run.losses == quiet.losses
    assert run.result.weights_sha256 == quiet.result.weights_sha256
    journal = Journal(tmp_path)
    assert journal.open_intents("storm") == []
    assert journal.instances("storm", live_only=True) == []
    journal.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_launcher_that_is_ended_in_the_call_leaks_nothing(
    compute: FakeCompute,  # noqa: F811
    machines: GcpMachines,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    """While the insert is under way: Ctrl-C clears up, and after a SIGKILL `parcae down` does."""
    compute.operation_s = 2.0
    settings = tmp_path / "fleet.toml"
    settings.write_text(
        f'machine_types = ["{MACHINE_TYPE}"]\ndevice = "model"\npackages = []\npython = "{sys.executable}"\n'
        "[times]\nclose_s = 10\ndescribe_s = 0.3\n"
    )
    environment = {**os.environ, "PARCAE_HOME": str(tmp_path / "home")}
    parcae = [sys.executable, "-P", "-m", "parcae_cli.main"]
    options = ["--cloud=gcp", "--yes", f"--fleet={settings}", "--nodes=2", "--name=job"]
    with subprocess.Popen(
        [*parcae, "launch", "gpt-tiny", *options], env=environment, cwd=tmp_path, stderr=subprocess.PIPE
    ) as launcher:
        deadline_s = time.monotonic() + 40
        while not compute.live():
            assert launcher.poll() is None, launcher.stderr and launcher.stderr.read()
            assert time.monotonic() < deadline_s, "nothing was rented"
            time.sleep(0.02)
        launcher.send_signal(number)
        assert launcher.wait(40) == (130 if number is signal.SIGINT else -number)
    assert compute.live() == [] or number is signal.SIGKILL
    for _ in range(2):
        down = subprocess.run(
            [*parcae, "down", "job", "--json"], env=environment, cwd=tmp_path, capture_output=True, timeout=60
        )
        assert down.returncode == 0, down.stderr
        assert compute.live() == []

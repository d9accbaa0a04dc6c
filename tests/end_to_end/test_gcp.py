"""A job on `--cloud gcp`: the real code, and a stand-in of Compute Engine whose instances are local nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cloud.gcp.conftest import compute  # noqa: F401
from tests.cloud.gcp.fake_compute import MACHINE_TYPE, FakeCompute
from tests.end_to_end.gcp_machines import GcpMachines
from tests.end_to_end.harness import processes_of

pytestmark = pytest.mark.timeout(240)  # workers load torch several times over
STEPS = 40


@pytest.fixture
def machines(compute: FakeCompute, tmp_path: Path) -> Iterator[GcpMachines]:  # noqa: F811
    """Switched off in the end; a dead node's processes must be gone by then."""
    made = GcpMachines(compute, tmp_path / "machines")
    yield made
    assert made.close() == []
    assert processes_of(tmp_path) == []


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

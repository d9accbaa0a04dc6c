"""A job on machines of one's own, behind real OpenSSH servers: one dies and comes back, nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.brake import LONGEST_HOLD_S, Brake
from tests.end_to_end.harness import STEPS, Finished, lines, processes_of, train
from tests.end_to_end.sshd import Rack, python_without_parcae, rack

pytestmark = pytest.mark.timeout(150)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Rack]:
    """A rack without machines yet."""
    with rack(tmp_path / "rack") as made:
        yield made


def train_on(machines: Rack, home: Path, watch: Any = None, **options: Any) -> Finished:
    """Run gpt-tiny on the machines."""
    fleet = {"hosts": str(machines.hosts_toml())}
    options = {"nodes": len(machines.machines), "steps": STEPS, **options}
    return train(home, "mine", watch, cloud="hosts", fleet=fleet, **options)


def assert_equal(run: Finished, base: Finished, machines: Rack) -> None:
    """Nothing lost, nothing repeated, the same losses and weights, and nothing left on the machines."""
    result = run.result
    assert result.state == "done", result.why
    assert (result.samples_lost, result.samples_repeated) == (0, 0)
    assert [line["step"] for line in run.metrics] == list(range(result.steps))
    assert run.losses == base.losses
    assert result.weights_sha256 == base.result.weights_sha256
    for machine in machines.machines.values():
        assert processes_of(machine.home) == []
        assert list(machine.home.glob(".cache/parcae/nodes/*")) == []


def has_joined_again(home: Path, node: str) -> bool:
    """Whether a node has joined twice."""
    events = lines(home / "jobs/mine/events.jsonl")
    return sum(event["text"] == f"{node} joined" for event in events) >= 2


def test_a_machine_dies_and_comes_back(
    undisturbed: Finished, machines: Rack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its death is a preemption, its return an allocation, and the weights are those of a quiet run.

    One machine is behind a jump host and has no Parcae, one does not forward sockets: the job does not mind.
    """
    machines.add("alpha")
    beta = machines.add("beta")
    machines.add("gamma", {"AllowStreamLocalForwarding": "no"})
    delta = machines.add("delta", extra="  ProxyJump alpha\n")
    delta.python = python_without_parcae(tmp_path / "venv")
    again: list[threading.Thread] = []
    steps: list[int] = [0]

    def held_s() -> float:  # while there is training left for it, the job goes on without it
        late = steps[-1] >= 40 and not has_joined_again(tmp_path / "home", "beta")
        return LONGEST_HOLD_S if late else 0.0

    brake = Brake(monkeypatch, held_s)

    def disturb(step: int, provider: Any) -> None:
        brake.stepped()
        steps.append(step)
        if step == 10:
            beta.die()
        if step == 20:
            again.append(threading.Thread(target=beta.start))
            again[0].start()

    run = train_on(machines, tmp_path / "home", disturb)
    again[0].join()
    assert_equal(run, undisturbed, machines)
    lost = {node for record in run.result.migrations for node in record.nodes_lost}
    joined = {node for record in run.result.migrations for node in record.nodes_joined}
    assert "beta" in lost
    assert "beta" in joined
    pushed = {name for name, machine in machines.machines.items() if list(machine.home.glob(".parcae-*"))}
    assert "delta" in pushed, "it has no Parcae of its own"


def test_a_cut_connection_costs_nothing(undisturbed: Finished, machines: Rack, tmp_path: Path) -> None:
    """Every connection to a machine breaks twice: its agent and worker live on, and are attached to again."""
    machines.add("alpha")
    machines.add("beta", {"AllowStreamLocalForwarding": "no", "Subsystem": "none /bin/false"})

    def cut(step: int, provider: Any) -> None:
        if step in (20, 40):
            for machine in machines.machines.values():
                machine.cut()

    run = train_on(machines, tmp_path / "home", cut)
    assert_equal(run, undisturbed, machines)
    assert not any(event["kind"] == "lost" for event in run.events)


def test_what_a_killed_launcher_left_is_ended_by_down(machines: Rack, tmp_path: Path) -> None:
    """SIGKILL of `parcae launch`, then `parcae down`: no process and no file is left, and down says so.

    As long as a host cannot be reached it is named, with exit code 5; gc has nothing to do with hosts.
    """
    machines.add("alpha")
    machines.add("beta")
    home = tmp_path / "home"
    environment = {**os.environ, "PARCAE_HOME": str(home)}
    command = [sys.executable, "-P", "-m", "parcae_cli.main", "launch", "gpt-tiny", "--name", "mine"]
    command += ["--cloud", "hosts", "--hosts", str(machines.hosts_toml()), "--nodes=2", "--steps=100000"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path
    ) as launcher:
        metrics = home / "jobs/mine/metrics.jsonl"
        deadline_s = time.monotonic() + 60
        while not (metrics.exists() and metrics.stat().st_size):
            assert launcher.poll() is None
            assert time.monotonic() < deadline_s, "training has not started"
            time.sleep(0.05)
        launcher.kill()
    assert processes_of(machines.machines["alpha"].home)

    def parcae(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command[:4], *words, "--json"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
        )

    assert (parcae("gc").returncode, json.loads(parcae("gc").stdout)["ended"]) == (0, {})
    machines.machines["beta"].stop()  # its agent and worker go on
    down = parcae("down", "mine")
    assert down.returncode == 5
    assert "host beta: beta refuses connections" in down.stderr
    assert [*json.loads(down.stdout)["jobs"][0]["killed"]] == ["what ran on alpha"]
    machines.machines["beta"].start()
    down = parcae("down", "mine")
    assert down.returncode == 0, down.stderr
    (ended,) = json.loads(down.stdout)["jobs"]
    assert ended["killed"] == ["what ran on alpha", "what ran on beta"]
    assert parcae("down", "mine").returncode == 0
    for machine in machines.machines.values():
        assert processes_of(machine.home) == []
        assert list(machine.home.glob(".cache/parcae/nodes/*")) == []


def test_machines_that_cannot_serve_are_named(machines: Rack, tmp_path: Path) -> None:
    """Without the right Python, without port forwarding, with an unknown host key: the others train."""
    machines.add("alpha")
    machines.add("beta")
    machines.add("wrong").python = "/no/such/python"
    machines.add("closed", {"AllowTcpForwarding": "no"})
    machines.add("stranger")
    known = machines.known_hosts.read_text().splitlines(keepends=True)
    machines.known_hosts.write_text("".join(line for line in known if not line.startswith("stranger ")))
    run = train_on(machines, tmp_path / "home", nodes=5, steps=30)
    assert run.result.state == "done", run.result.why
    trouble = " ".join(event["text"] for event in run.events if event["kind"] == "trouble")
    assert "/no/such/python does not run" in trouble
    assert "set `python` in hosts.toml" in trouble
    assert "AllowTcpForwarding" in trouble
    assert "stranger: its host key is not in known_hosts" in trouble
    joined = {event["text"] for event in run.events if event["kind"] == "joined"}
    assert joined == {"alpha joined", "beta joined"}

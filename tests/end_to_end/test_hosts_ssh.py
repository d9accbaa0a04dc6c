"""Machines of one's own are reached as `ssh` reaches them: agents, jump hosts, known hosts; real OpenSSH."""

from __future__ import annotations

import asyncio
import getpass
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud.types import OwnSshTarget
from runtime.control.fleet import ssh
from tests.end_to_end.harness import processes_of
from tests.end_to_end.sshd import Rack, keygen
from tests.end_to_end.test_hosts import machines  # noqa: F401

# ruff: noqa: F811
pytestmark = pytest.mark.timeout(120)


def says(machines: Rack, name: str, timeout_s: float = 10.0) -> str:
    """What a command on the machine prints, over a new connection by the user's configuration."""

    async def ask() -> str:
        connection = await ssh.connect(OwnSshTarget(name, config=str(machines.config)), timeout_s)
        try:
            return (await ssh.run(connection, "echo $HOME", 10.0)).output.strip()
        finally:
            connection.close()

    return asyncio.run(ask())


def reconfigure(machines: Rack, *changes: tuple[str, str]) -> None:
    """Replace text in the SSH configuration."""
    text = machines.config.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    machines.config.write_text(text)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of whoever has an ssh-agent, which has no key yet."""
    path = tmp_path / "agent.sock"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    yield {**os.environ, "SSH_AUTH_SOCK": str(path)}
    process.kill()
    process.wait(10)


def test_keys_of_an_agent_are_enough(
    machines: Rack, agent: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key file at all, its public half alone, or one with a passphrase: the agent signs. Else it is said.

    Nobody is ever asked for a passphrase.
    """
    alpha = machines.add("alpha")
    monkeypatch.setenv("SSH_AUTH_SOCK", agent["SSH_AUTH_SOCK"])
    monkeypatch.setenv("HOME", str(machines.folder))
    files = {
        "none": ((f"  IdentityFile {machines.key}\n  IdentitiesOnly yes\n", ""),),
        "public": ((f"IdentityFile {machines.key}\n", f"IdentityFile {machines.folder}/only.pub\n"),),
        "encrypted": ((f"IdentityFile {machines.key}\n", f"IdentityFile {machines.folder}/locked\n"),),
    }
    (machines.folder / "only.pub").write_text(machines.key.with_suffix(".pub").read_text())
    locked = machines.folder / "locked"
    locked.write_text(machines.key.read_text())
    locked.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(locked)], check=True)
    (machines.folder / "locked.pub").write_text(machines.key.with_suffix(".pub").read_text())
    as_it_was = machines.config.read_text()
    for kind, changes in files.items():
        machines.config.write_text(as_it_was)
        reconfigure(machines, *changes)
        subprocess.run(["ssh-add", "-q", "-D"], env=agent, check=True, capture_output=True)
        with pytest.raises(ssh.SshError, match="alpha"):
            says(machines, "alpha")
        subprocess.run(["ssh-add", "-q", str(machines.key)], env=agent, check=True, capture_output=True)
        assert says(machines, "alpha") == str(alpha.home), kind


def test_a_host_key_is_known_or_the_host_is_refused(machines: Rack) -> None:
    """Hashed entries count; an unknown, a changed and a revoked key are refused with what to do."""
    alpha = machines.add("alpha")
    subprocess.run(
        ["ssh-keygen", "-q", "-H", "-f", str(machines.known_hosts)], check=True, capture_output=True
    )
    assert "alpha" not in machines.known_hosts.read_text()
    assert says(machines, "alpha") == str(alpha.home)
    other = " ".join(keygen("other", machines.folder).with_suffix(".pub").read_text().split()[:2])
    for entry in ("", f"alpha {other}\n", f"@revoked alpha {alpha.host_key}\n"):
        machines.known_hosts.write_text(entry)
        with pytest.raises(ssh.SshError, match=r"alpha: its host key .*(?s:.*)Log in once with `ssh alpha`"):
            says(machines, "alpha")


def test_a_chain_of_jump_hosts_is_gone_through_and_its_breaks_are_named(machines: Rack) -> None:
    """Two hops, each with its own known key; a jump host that is down, or cannot reach it, is no death."""
    alpha, beta = machines.add("alpha"), machines.add("beta")
    gamma = machines.add("gamma", extra="  ProxyJump alpha,beta\n")
    assert says(machines, "gamma") == str(gamma.home)
    assert "Accepted publickey" in (beta.folder / "sshd.log").read_text()
    gamma.stop()
    with pytest.raises(ssh.RefusedError, match="its jump host cannot connect to it"):
        says(machines, "gamma")
    gamma.start()
    machines.known_hosts.write_text(re.sub(r"(?m)^beta .*\n", "", machines.known_hosts.read_text()))
    with pytest.raises(ssh.SshError, match="host key"):
        says(machines, "gamma")
    alpha.stop()
    with pytest.raises(ssh.SshError, match="gamma"):
        says(machines, "gamma")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_launch_that_is_ended_while_it_sets_hosts_up_leaves_nothing(
    machines: Rack, tmp_path: Path, number: signal.Signals
) -> None:
    """Before anybody trains: Ctrl-C clears up and exits with 130; after a SIGKILL `down` does."""
    for name in ("alpha", "beta"):
        machines.add(name)
    environment = {**os.environ, "PARCAE_HOME": str(tmp_path / "home"), "USER": getpass.getuser()}
    parcae = [sys.executable, "-P", "-m", "parcae_cli.main"]
    command = [*parcae, "launch", "gpt-tiny", "--name=mine", "--cloud=hosts", "--nodes=2"]
    homes = [machine.home for machine in machines.machines.values()]
    with subprocess.Popen(
        [*command, f"--hosts={machines.hosts_toml()}"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        deadline_s = time.monotonic() + 40
        while not any(list(home.glob(".cache/parcae/nodes/*")) for home in homes):
            assert launcher.poll() is None
            assert time.monotonic() < deadline_s, "no host was set up"
            time.sleep(0.005)
        launcher.send_signal(number)
        _, said = launcher.communicate(timeout=40)
    assert launcher.returncode == (130 if number is signal.SIGINT else -number), said
    assert "Traceback" not in said
    if number is signal.SIGKILL:
        down = subprocess.run([*parcae, "down", "mine"], env=environment, cwd=tmp_path, capture_output=True)
        assert down.returncode == 0, down.stderr
    for home in homes:
        assert processes_of(home) == []
        assert list(home.glob(".cache/parcae/nodes/*")) == []

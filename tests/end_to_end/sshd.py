"""Real OpenSSH servers on loopback ports, each one a machine of its own to whoever logs in there."""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from cloud.processes import Register, wait_until_gone

_UP_WITHIN_S = 10.0


@cache
def find_sshd() -> str:
    """The path of sshd, installed where that is possible.

    Skips the test, with the reason, where it is not.
    """
    places = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    if (found := shutil.which("sshd", path=places)) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        command = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "openssh-server"]
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(command, capture_output=True, timeout=100, env=quiet)
        found = shutil.which("sshd", path=places)
    if found is None:
        pytest.skip("OpenSSH's server is not installed; as root on Debian: apt-get install openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd puts its unprivileged half; systemd makes it else
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """A port of an address of this machine that nobody listens on now.

    It is none of those that the kernel gives to outgoing connections (from 32768 on): one of those could take
    it before its server does, or while that is down.
    """
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, random.randrange(10_000, 32_000)))
            return int(probe.getsockname()[1])


@dataclass
class Machine:
    """One sshd. Who logs in finds `home` in $HOME; `settings` are lines of its sshd_config."""

    name: str
    folder: Path
    authorized: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    python: str = sys.executable
    more: str = ""  # further lines of its entry in hosts.toml

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.home = self.folder / "home"
        self.home.mkdir()
        self.port = free_port()
        keygen("host_key", self.folder)
        lines = {
            "ListenAddress": "127.0.0.1",
            "Port": str(self.port),
            "HostKey": str(self.folder / "host_key"),
            "PidFile": "none",
            "AuthorizedKeysFile": str(self.authorized),
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "UsePAM": "no",
            "StrictModes": "no",
            "SetEnv": f"HOME={self.home}",
            "Subsystem": "sftp internal-sftp",
            "MaxStartups": "100",
            **self.settings,
        }
        text = "".join(f"{key} {value}\n" for key, value in lines.items())
        (self.folder / "sshd_config").write_text(text)

    @property
    def host_key(self) -> str:
        """The public half, as known_hosts has it."""
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    def start(self) -> None:
        """Be up when this returns."""
        command = [find_sshd(), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with (self.folder / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, start_new_session=True)
        deadline_s = time.monotonic() + _UP_WITHIN_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "sshd.log").read_text()
                assert time.monotonic() < deadline_s, "sshd does not listen"
                time.sleep(0.02)

    def die(self) -> None:
        """Lose power: the server, its sessions, and every process that was started through them, at once."""
        registers = [Register(path) for path in self.home.rglob("pgids")]
        self.stop()
        records = [record for register in registers for record in register.kill_roles()]
        wait_until_gone(records, 5.0)

    def stop(self) -> None:
        """End the server and its sessions; what they have left running goes on."""
        if self.process is None:
            return
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(5.0)
        self.process = None

    def cut(self) -> None:
        """Break every connection; the server stays."""
        assert self.process is not None
        for pid in descendants(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def records(self, role: str) -> list[int]:
        """The pids of those who ever had this role (agent, worker) here."""
        registers = [Register(path) for path in self.home.rglob("pgids")]
        return [record.pid for register in registers for record in register.records() if record.role == role]


def descendants(pid: int) -> list[int]:
    """The children of a process and theirs, in sshd's own session tree only (daemons have left it)."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def keygen(name: str, folder: Path) -> Path:
    """A new key pair without a passphrase."""
    path = folder / name
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path)], check=True, timeout=20
    )
    return path


def python_without_parcae(folder: Path) -> str:
    """An interpreter with what ours has installed, but without these packages.

    They are installed by a .pth file, and a folder that is itself named by one is not searched for those.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return str(folder / "bin/python")


class Rack:
    """Some machines, and the SSH configuration that a user of them would have."""

    def __init__(self, folder: Path) -> None:
        find_sshd()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.key = keygen("user_key", folder)
        self.machines: dict[str, Machine] = {}
        self.config = folder / "ssh_config"
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.write_text("")

    def add(self, name: str, settings: Mapping[str, str] | None = None, extra: str = "") -> Machine:
        """A machine that is up, and known under its name; `extra` are lines of its `Host` block."""
        machine = Machine(name, self.folder / name, self.key.with_suffix(".pub"), settings or {})
        machine.start()
        self.machines[name] = machine
        with self.known_hosts.open("a") as file:
            file.write(f"{name} {machine.host_key}\n")
        with self.config.open("a") as file:
            file.write(
                f"Host {name}\n  HostName 127.0.0.1\n  Port {machine.port}\n  HostKeyAlias {name}\n"
                f"  User {getpass.getuser()}\n  IdentityFile {self.key}\n  IdentitiesOnly yes\n"
                f"  UserKnownHostsFile {self.known_hosts}\n{extra}"
            )
        return machine

    def hosts_toml(self, names: list[str] | None = None) -> Path:
        """The file that names them (all of them, by default)."""
        text = f'ssh_config = "{self.config}"\n'
        for name in names or self.machines:
            machine = self.machines[name]
            text += f'[[host]]\naddress = "{name}"\npython = "{machine.python}"\n{machine.more}'
        path = self.folder / "hosts.toml"
        path.write_text(text)
        return path


@contextlib.contextmanager
def rack(folder: Path) -> Iterator[Rack]:
    """Machines that are all gone in the end."""
    made = Rack(folder)
    try:
        yield made
    finally:
        for machine in made.machines.values():
            machine.die()

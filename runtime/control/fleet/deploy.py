"""Bringing these packages to a node over SSH, and the command that starts the agent there."""

from __future__ import annotations

import functools
import hashlib
import io
import secrets
import shlex
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import asyncssh

from cloud.anchor import BootFiles
from cloud.types import Instance
from runtime.control.fleet import ssh

PACKAGES = ("cloud", "runtime", "parcae_cli")
_UNPACK_TIMEOUT_S = 60.0
_STATE_TIMEOUT_S = 10.0
_LOG_LINES = 40


class AgentStart(Protocol):
    """Makes a node ready for an agent, and tells how to start Python there."""

    async def __call__(self, connection: asyncssh.SSHClientConnection, instance: Instance) -> str:
        """The shell words that go before `-P -m parcae_cli.agent`.

        Raises:
            ssh.SshError: the node is not ready (yet), or it refused.
        """
        ...


async def check_booted(connection: asyncssh.SSHClientConnection, name: str, files: BootFiles) -> None:
    """Return if the bootstrap of this machine has ended well.

    Raises:
        ssh.BrokenNodeError: it failed; the message ends with its log.
        ssh.CommandError: it is still at work.
    """
    command = (
        f"if [ -e {files.failed} ]; then tail -n {_LOG_LINES} {files.log}; exit 9; fi; test -e {files.ready}"
    )
    reply = await ssh.run(connection, command, _STATE_TIMEOUT_S)
    if reply.status == 9:
        raise ssh.BrokenNodeError(f"the bootstrap of {name} failed: {reply.output.strip()}")
    if reply.status:
        raise ssh.CommandError(f"{name} is not ready yet: its bootstrap is at work")


@functools.cache
def source_archive() -> tuple[bytes, str]:
    """The packages of this very process as a zip file, and its digest: equal sources, equal bytes."""
    home = Path(__file__).resolve().parents[3]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in PACKAGES:
            for path in sorted((home / package).rglob("*.py")):
                entry = zipfile.ZipInfo(str(path.relative_to(home)))
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    data = buffer.getvalue()
    return data, hashlib.sha256(data).hexdigest()[:16]


@dataclass(frozen=True)
class PushedSources:
    """Start agents from a copy of our sources, pushed over SSH once for each version and node.

    `python` is the node's interpreter (with numpy and torch); `environment` is set for the agent and so for
    its workers. A value may use the node's own variables, as a shell would expand them.
    """

    python: str
    environment: Mapping[str, str] = field(default_factory=dict)

    async def __call__(self, connection: asyncssh.SSHClientConnection, instance: Instance) -> str:
        """Push what is not there, and return the words that start Python with it."""
        folder = await push_sources(connection, self.python)
        words = [f'{name}="{value}"' for name, value in self.environment.items()]
        return f'env PYTHONPATH="$HOME/{folder}" {" ".join(words)} {shlex.quote(self.python)}'


async def push_sources(connection: asyncssh.SSHClientConnection, python: str) -> str:
    """Put our sources in a folder below the user's home, and return its name.

    The archive is unpacked beside its place and moved there whole, so a broken push leaves nothing half done,
    and several that share a home may push at once.

    Raises:
        ssh.SshError: the node has no such Python, or the connection broke.
    """
    archive, digest = source_archive()
    folder = f".parcae-{digest}"
    there = await ssh.run(connection, f'test -d "$HOME/{folder}"', _UNPACK_TIMEOUT_S)
    if there.status == 0:
        return folder
    new = f"{folder}.{secrets.token_hex(4)}"
    # By standard input, not SFTP: that may be switched off, or begin in another folder than the shell.
    unpack = (
        f'cd "$HOME" && cat > {new}.zip && {shlex.quote(python)} -m zipfile -e {new}.zip {new}'
        f" && {{ mv -T {new} {folder} 2>/dev/null || test -d {folder}; }};"
        f" status=$?; rm -rf {new} {new}.zip; exit $status"
    )
    reply = await ssh.run(connection, unpack, _UNPACK_TIMEOUT_S, archive)
    if reply.status:
        raise ssh.CommandError(f"unpacking our sources with {python}: {reply.error.strip()[-500:]}")
    return folder

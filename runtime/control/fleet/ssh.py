"""SSH to a node: pinned host key, fast ciphers, quick discovery of a dead peer, and no silent loss."""

from __future__ import annotations

import asyncio
import logging
import shlex
from dataclasses import dataclass
from typing import Any, cast

import asyncssh

from cloud.types import OwnSshTarget, SshTarget
from runtime.control.node.bridge import BRIDGED

KEEPALIVE_S = 2.0
KEEPALIVES_MISSED = 3
CONNECT_TIMEOUT_S = 10.0

# First what is cheapest where the processor knows AES; any sshd of the last ten years has one of these.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr")

logging.getLogger("asyncssh").setLevel(logging.ERROR)


class SshError(Exception):
    """A node cannot be reached or did not do what it was told. The message names the node's address."""


class RefusedError(SshError):
    """Nobody listens there: the machine is gone, or its sshd is not up (yet)."""


class ConnectionLost(SshError):
    """The connection broke in the middle."""


class DeliveryCutError(ConnectionLost):
    """The connection broke after some of the data had arrived: the next try goes on from there."""


class CommandError(SshError):
    """A remote command failed."""


class BrokenNodeError(SshError):
    """The node can be reached but will never serve: no use in trying again."""


@dataclass(frozen=True)
class CommandReply:
    """What a remote command wrote and how it ended (its exit status)."""

    status: int
    output: str
    error: str


async def connect(
    target: SshTarget | OwnSshTarget, timeout_s: float = CONNECT_TIMEOUT_S
) -> asyncssh.SSHClientConnection:
    """Connect once. The caller decides about another try.

    Raises:
        RefusedError: nobody listens there.
        SshError: anything else, an unexpected host key and a timeout included.
    """
    where = _address(target)
    try:
        return await asyncssh.connect(
            target.host,
            **(_pinned(target) if isinstance(target, SshTarget) else _as_user(target)),
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=KEEPALIVES_MISSED,
            connect_timeout=timeout_s,
            login_timeout=timeout_s,
        )
    except ConnectionRefusedError as error:
        raise RefusedError(f"{where} refuses connections") from error
    except asyncssh.HostKeyNotVerifiable as error:
        if isinstance(target, OwnSshTarget):
            raise SshError(
                f"{where}: its host key is not in known_hosts, or differs from what is: {error.reason}. "
                f"Log in once with `ssh {target.host}`, and compare the key"
            ) from error
        raise SshError(
            f"{where} shows another host key than it was launched with: not our machine"
        ) from error
    except asyncssh.ChannelOpenError as error:
        raise RefusedError(f"{where}: its jump host cannot connect to it: {error.reason}") from error
    except asyncssh.PermissionDenied as error:
        raise SshError(f"{where} does not accept our keys: {error.reason}") from error
    except (OSError, asyncssh.Error, TimeoutError) as error:
        raise SshError(f"{where}: {str(error) or type(error).__name__}") from error
    except ValueError as error:  # ConfigParseError and KeyImportError are both of this kind
        raise SshError(f"{where}: in the SSH configuration: {error}") from error


def _address(target: SshTarget | OwnSshTarget) -> str:
    user = f"{target.username}@" if target.username else ""
    return f"{user}{target.host}" + (f":{target.port}" if target.port else "")


def _pinned(target: SshTarget) -> dict[str, Any]:
    """A machine that we have launched: our key, its key, and nothing of the user's."""
    return {
        "port": target.port,
        "username": target.username,
        "client_keys": [asyncssh.import_private_key(target.client_key)],
        "known_hosts": ([asyncssh.import_public_key(target.host_public_key)], [], []),
        "agent_path": None,
        "config": None,
        "preferred_auth": "publickey",
        "gss_host": None,
        "encryption_algs": list(_CIPHERS),
        "compression_algs": ["none"],
    }


def _as_user(target: OwnSshTarget) -> dict[str, Any]:
    """A machine of the user's: whatever their configuration says, and never a question to them.

    Raises:
        SshError: the configuration turns the check of host keys off for this host.
    """
    arguments: dict[str, Any] = {}
    if target.port is not None:
        arguments["port"] = target.port
    if target.username is not None:
        arguments["username"] = target.username
    if target.config is not None:
        arguments["config"] = [target.config]
    options = asyncssh.SSHClientConnectionOptions(host=target.host, **arguments)
    if options.known_hosts is None:  # `UserKnownHostsFile none`: ssh would know no key, asyncssh any
        raise SshError(
            f"{_address(target)}: UserKnownHostsFile is none for it: its host key could not be checked"
        )
    return arguments


async def run(
    connection: asyncssh.SSHClientConnection, command: str, timeout_s: float, data: bytes = b""
) -> CommandReply:
    """Run a command to its end, with `data` on its standard input.

    Raises:
        ConnectionLost: the peer vanished: neither an exit status nor a signal came, which asyncssh does not
        call an
            error even when asked to check.
        CommandError: it was killed by a signal, or did not end in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            done = await connection.run(command, input=data, encoding=None)
    except TimeoutError as error:
        raise CommandError(f"`{command}` did not end within {timeout_s:g} s") from error
    except (OSError, asyncssh.Error) as error:
        raise ConnectionLost(f"`{command}`: {error}") from error
    if done.exit_status is None and done.exit_signal is None:
        raise ConnectionLost(f"`{command}`: the connection broke")
    if done.exit_status is None or done.exit_signal is not None:
        raise CommandError(f"`{command}` was ended by signal {(done.exit_signal or ('?',))[0]}")
    return CommandReply(done.exit_status, _text(done.stdout), _text(done.stderr))


def _text(output: object) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else str(output or "")


class LineChannel(asyncssh.SSHUNIXSession[bytes], asyncssh.SSHClientSession[bytes]):
    """A stream to a socket on the node, by callbacks: no task and no future per message.

    It leads to the socket directly, or, where the node's sshd does not forward sockets, to a command there
    that does.

    `on_data` gets bytes as they come, `closed` is set once when the stream ends, for whatever reason.
    """

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.pending = bytearray()
        self._channel: Any = None
        self.on_data = self._keep
        self.first_data = asyncio.Event()

    def _keep(self, data: bytes) -> None:
        self.pending += data

    def connection_made(self, chan: Any) -> None:
        """The channel is open."""
        self._channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Bytes from the node. What a command says on its standard error is not for us."""
        if datatype is None:
            self.on_data(data)
            self.first_data.set()

    def eof_received(self) -> bool:
        """The far process is gone; there is nothing left to say to it."""
        self.closed.set()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel or the whole connection is gone."""
        self.closed.set()

    def write(self, data: bytes) -> None:
        """Send, unless the channel has closed; what is lost then is sent again on the next one."""
        if self._channel is not None and not self.closed.is_set() and not self._channel.is_closing():
            self._channel.write(data)

    def close(self) -> None:
        """End the stream."""
        self.closed.set()
        if self._channel is not None:
            self._channel.abort()


async def open_lines(connection: asyncssh.SSHClientConnection, path: str, timeout_s: float) -> LineChannel:
    """Open a stream to the unix socket `path` on the node.

    Raises:
        RefusedError: nobody listens on that socket.
        ConnectionLost: the connection broke.
    """
    try:
        async with asyncio.timeout(timeout_s):
            _, session = await connection.create_unix_connection(LineChannel, path, encoding=None)
    except asyncssh.ChannelOpenError as error:
        if connection.is_closed() or "connection closed" in error.reason:
            raise ConnectionLost(f"{path}: the connection broke") from error
        raise RefusedError(f"nobody listens on {path}: {error.reason}") from error
    except (OSError, asyncssh.Error, TimeoutError) as error:
        raise ConnectionLost(f"{path}: {str(error) or type(error).__name__}") from error
    return cast(LineChannel, session)


async def open_bridge(
    connection: asyncssh.SSHClientConnection, python: str, path: str, timeout_s: float
) -> LineChannel:
    """Open a stream to the unix socket `path` by way of a command on the node, `python` being the shell
    words that start Python there with our packages.

    Raises:
        RefusedError: nobody listens on that socket.
        ConnectionLost: the connection broke, or the command does not start.
    """
    command = f"exec {python} -P -m parcae_cli.agent --attach {shlex.quote(path)}"
    try:
        async with asyncio.timeout(timeout_s):
            _, session = await connection.create_session(LineChannel, command, encoding=None)
            channel = cast(LineChannel, session)
            waits = [asyncio.create_task(event.wait()) for event in (channel.first_data, channel.closed)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
    except (OSError, asyncssh.Error, TimeoutError) as error:
        raise ConnectionLost(f"{path}: {str(error) or type(error).__name__}") from error
    if not channel.pending.startswith(BRIDGED):
        raise RefusedError(f"nobody listens on {path}")
    del channel.pending[: len(BRIDGED)]
    return channel

"""SSH to a node: pinned host key, fast ciphers, quick discovery of a dead peer, and no silent loss."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import cast

import asyncssh

from cloud.types import SshTarget

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


class CommandError(SshError):
    """A remote command failed."""


@dataclass(frozen=True)
class CommandReply:
    """What a remote command wrote and how it ended (its exit status)."""

    status: int
    output: str
    error: str


async def connect(target: SshTarget, timeout_s: float = CONNECT_TIMEOUT_S) -> asyncssh.SSHClientConnection:
    """Connect once. The caller decides about another try.

    Raises:
        RefusedError: nobody listens there.
        SshError: anything else, an unexpected host key and a timeout included.
    """
    where = f"{target.username}@{target.host}:{target.port}"
    try:
        return await asyncssh.connect(
            target.host,
            target.port,
            username=target.username,
            client_keys=[asyncssh.import_private_key(target.client_key)],
            known_hosts=([asyncssh.import_public_key(target.host_public_key)], [], []),
            agent_path=None,
            config=None,
            preferred_auth="publickey",
            gss_host=None,
            encryption_algs=list(_CIPHERS),
            compression_algs=["none"],
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=KEEPALIVES_MISSED,
            connect_timeout=timeout_s,
            login_timeout=timeout_s,
        )
    except ConnectionRefusedError as error:
        raise RefusedError(f"{where} refuses connections") from error
    except asyncssh.HostKeyNotVerifiable as error:
        raise SshError(
            f"{where} shows another host key than it was launched with: not our machine"
        ) from error
    except (OSError, asyncssh.Error, TimeoutError) as error:
        raise SshError(f"{where}: {str(error) or type(error).__name__}") from error


async def run(connection: asyncssh.SSHClientConnection, command: str, timeout_s: float) -> CommandReply:
    """Run a command to its end.

    Raises:
        ConnectionLost: the peer vanished: neither an exit status nor a signal came, which asyncssh does not
        call an
            error even when asked to check.
        CommandError: it was killed by a signal, or did not end in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            done = await connection.run(command, stdin=asyncssh.DEVNULL)
    except TimeoutError as error:
        raise CommandError(f"`{command}` did not end within {timeout_s:g} s") from error
    except (OSError, asyncssh.Error) as error:
        raise ConnectionLost(f"`{command}`: {error}") from error
    if done.exit_status is None and done.exit_signal is None:
        raise ConnectionLost(f"`{command}`: the connection broke")
    if done.exit_status is None or done.exit_signal is not None:
        raise CommandError(f"`{command}` was ended by signal {(done.exit_signal or ('?',))[0]}")
    return CommandReply(done.exit_status, str(done.stdout), str(done.stderr))


class LineChannel(asyncssh.SSHUNIXSession[bytes]):
    """A stream to a socket on the node, by callbacks: no task and no future per message.

    `on_data` gets bytes as they come, `closed` is set once when the stream ends, for whatever reason.
    """

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.pending = bytearray()
        self._channel: asyncssh.SSHUNIXChannel[bytes] | None = None
        self.on_data = self._keep

    def _keep(self, data: bytes) -> None:
        self.pending += data

    def connection_made(self, chan: asyncssh.SSHUNIXChannel[bytes]) -> None:
        """The channel is open."""
        self._channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Bytes from the node."""
        self.on_data(data)

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

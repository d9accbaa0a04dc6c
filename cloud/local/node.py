"""One local node: an SSH server, a metadata endpoint, a work folder and process groups, ended at one blow."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import asyncssh

from cloud.local.metadata import MetadataService
from cloud.processes import Fate, ProcessRecord, Register
from cloud.types import Instance, SshTarget

USERNAME = "parcae"

# What an instance does while it boots would cost its neighbours nothing if it were one. Its agent must not
# yield: these words are for nodes whose agent is forked elsewhere. As for `runtime.control.node.priority`.
_YIELDING: tuple[str, ...] = ("nice", "-n", "10")
_SESSION_YIELDS = "{ echo 10 >/proc/self/autogroup; } 2>/dev/null; "
_PIECE_BYTES = 65536

# What a node inherits from the launching machine. Everything else (tokens, keys, cloud profiles) stays
# outside.
_INHERITED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


def node_environment() -> dict[str, str]:
    """The part of this process's environment that nodes may see."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


def remove_folder(folder: Path) -> None:
    """Remove an ended node's work folder, and its agent's socket where that had to be put elsewhere."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        path = Path(json.loads((folder / "agent.json").read_text())["socket"])
        if not path.is_relative_to(folder) and path.parent.name.startswith("parcae-"):
            shutil.rmtree(path.parent)
    shutil.rmtree(folder, ignore_errors=True)


class LocalNode:
    """A machine made of processes. `start` boots it, `kill` is the power switch.

    It listens for SSH on `host`, any address of the loopback network, and shows `host_key` (a new one, if
    none is given). Of `client_key` the public half is enough, unless `ssh_target` is asked for.
    """

    def __init__(
        self,
        instance: Instance,
        folder: Path,
        log: Path,
        client_key: asyncssh.SSHKey,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        host_key: asyncssh.SSHKey | None = None,
    ) -> None:
        self.instance = instance
        self.folder = folder
        self.log = log
        self.alive = True
        self.register = Register(folder / "pgids")
        self.metadata = MetadataService(instance.id, instance.pool.instance_type, instance.pool.zone)
        self._client_key = client_key
        self._host, self._port = host, port
        self._host_key = host_key or asyncssh.generate_private_key("ssh-ed25519")
        self._server: asyncssh.SSHAcceptor | None = None
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._processes: set[asyncio.subprocess.Process] = set()
        self._environment: dict[str, str] = {}

    async def start(self, environment: Mapping[str, str]) -> None:
        """Boot: afterwards SSH and the metadata service answer. A node killed meanwhile stays dead."""
        if not self.alive:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.register.path.touch()
        # An agent that is here already (its launcher was killed) asks the service at its old address.
        port = self.folder / "metadata-port"
        await self.metadata.listen(int(port.read_text()) if port.exists() else 0)
        if not self.alive:  # killed meanwhile, and perhaps its folder is gone already
            self._close_ports()
            return
        port.write_text(self.metadata.url.rsplit(":", 1)[1])
        self._environment = {
            **node_environment(),
            **environment,
            "HOME": str(self.folder),
            "PARCAE_NODE": self.instance.name,
            "PARCAE_REGISTER": str(self.register.path),
            "PARCAE_LOG": str(self.log),
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.metadata.url,
        }
        authorized = asyncssh.import_authorized_keys(self._client_key.export_public_key().decode())
        self._server = await asyncssh.listen(
            self._host,
            self._port,
            server_factory=lambda: _Gate(self),
            server_host_keys=[self._host_key],
            authorized_client_keys=authorized,
            process_factory=self._serve,
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=os.fsencode(self.folder)),
            encoding=None,
            config=None,
        )
        if not self.alive:
            self._close_ports()

    def ssh_target(self) -> SshTarget:
        """Where the node's SSH server listens, with the keys that it was given at launch."""
        if self._server is None:
            raise RuntimeError(f"node {self.instance.name} has not booted")
        return SshTarget(
            host=self._host,
            port=self._server.get_port(),
            username=USERNAME,
            client_key=self._client_key.export_private_key().decode(),
            host_public_key=self._host_key.export_public_key().decode(),
        )

    def kill(self) -> dict[ProcessRecord, Fate]:
        """The machine is gone: port closed, process groups SIGKILLed, connections dropped without goodbye."""
        self.alive = False
        self._close_ports()
        fates = self.register.kill()
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for connection in list(self._connections):
            connection.abort()
        return fates

    def cut(self) -> None:
        """Break the SSH connections and nothing else, as a network fault does."""
        for connection in list(self._connections):
            connection.abort()

    def _close_ports(self) -> None:
        if self._server is not None:
            self._server.close()
        self.metadata.close()

    async def _serve(self, remote: asyncssh.SSHServerProcess[bytes]) -> None:
        """Run one command in its own process group; it outlives the SSH session, as on a real sshd."""
        command = remote.command or "exec sh"
        yielding: tuple[str, ...] = ()
        if "PARCAE_AGENT_ZYGOTE" in self._environment:
            command, yielding = f"{_SESSION_YIELDS}{command}", _YIELDING
        process = await asyncio.create_subprocess_exec(
            *yielding,
            "/bin/sh",
            "-c",
            command,
            cwd=self.folder,
            env=self._environment,
            start_new_session=True,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._processes.add(process)
        feeding = asyncio.create_task(_feed(remote, process.stdin))
        try:
            if not self.register.enter("command", process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(asyncssh.Error, OSError):
                # A command may close one of its outputs and go on with the other.
                await remote.redirect(None, process.stdout, process.stderr, send_eof=False)
                status = await process.wait()
                await remote.stdout.drain()  # without this the last lines can be lost
                if status >= 0:
                    remote.exit(status)
                else:
                    remote.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
                remote.close()
                await remote.wait_closed()
            await process.wait()
        finally:
            feeding.cancel()
            self._processes.discard(process)


async def _feed(remote: asyncssh.SSHServerProcess[bytes], stdin: asyncio.StreamWriter | None) -> None:
    """Pass on what the far side says, until it says no more or nobody reads it.

    asyncssh would do it, but with a queue that it waits for only where a session ends in good order.
    """
    assert stdin is not None
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await remote.stdin.read(_PIECE_BYTES):
            stdin.write(data)
            await stdin.drain()
    stdin.close()


class _Gate(asyncssh.SSHServer):
    """Keeps count of connections, and lets the agent's socket be reached while the node lives."""

    def __init__(self, node: LocalNode) -> None:
        self._node = node
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._node._connections.add(conn)
        if not self._node.alive:
            conn.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            self._node._connections.discard(self._connection)

    def begin_auth(self, username: str) -> bool:
        return True

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        return self._node.alive

    def unix_connection_requested(self, dest_path: str) -> bool:
        return self._node.alive

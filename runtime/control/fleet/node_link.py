"""The way to one node: connect, start its agent, stay attached through breaks, and tell at once what is lost.

What happens after the stream to the agent ends, for whatever reason (a node's workers are lost together):

- the SSH connection stands: attach again; if nobody listens on the agent's socket, the agent has died: its
  worker is lost, and a new agent is started;
- the SSH connection broke: connect again; refused means that the machine is gone: its worker is lost at once.
  Any other failure is tried again, and the worker is lost `grace_s` after the break;
- nothing was heard for `grace_s` though all stands: the worker is lost; a new agent first ends the old one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import time
from collections.abc import Callable
from typing import Any

import asyncssh

from cloud.types import Instance, Notice, OwnSshTarget, SshTarget
from runtime.control.fleet import ssh
from runtime.control.fleet.deploy import AgentStart
from runtime.control.fleet.events import (
    FleetEvent,
    NodeNoticed,
    WorkerFailed,
    WorkerJoined,
    WorkerLost,
    WorkerMessage,
)
from runtime.control.fleet.link import Link, split_lines
from runtime.control.fleet.link_times import LinkTimes
from runtime.control.fleet.node_notices import NodeNotices
from runtime.control.fleet.worker_end import WorkerEnd
from runtime.control.node.worker_seat import of_kind
from runtime.planning.placement import worker_names

__all__ = ["LinkTimes", "NodeLink"]


class NodeLink:
    """One node, from its boot to its end. `tend` runs as a task for as long as the instance lives."""

    def __init__(
        self,
        instance: Instance,
        controller_id: str,
        target: Callable[[], SshTarget | OwnSshTarget],
        emit: Callable[[FleetEvent], None],
        trouble: Callable[[str, str], None],
        python: str,
        times: LinkTimes,
        agent_start: AgentStart | None = None,
        anchor: tuple[str, int] | None = None,
        adopt: bool = False,
        gpus: int = 1,
    ) -> None:
        """`adopt`: an agent and a worker of this job's may live there, and are to be kept."""
        self.instance = instance
        self.name = instance.name
        self.pids: tuple[int, ...] = ()
        self._controller_id = controller_id
        self._target = target
        self._emit = emit
        self._trouble, self._times = trouble, times
        self._agent_start, self._anchor = agent_start, anchor
        self._adopt = adopt
        self._anchor_port: int | None = None  # the node's own port that leads to the anchor
        self._forwarding: asyncio.Task[None] | None = None
        self._connection: asyncssh.SSHClientConnection | None = None
        self._channel: ssh.LineChannel | None = None
        self._link = Link()
        self._agent_id = ""
        self._socket_path = ""
        self._python_words = shlex.quote(python)  # what starts Python there, in the words of its shell
        self._agent_is_new = False  # it has just said that it listens
        self._bridged = False  # the node's sshd does not forward sockets
        self._over = False
        self._greeted = False
        self._greeting = asyncio.Event()
        self._buffer = bytearray()
        self._outbox = bytearray()
        self._ends = [WorkerEnd(name, gpu) for gpu, name in enumerate(worker_names(self.name, gpus))]
        self._notices = NodeNotices()
        self._fence_wanted = False
        self._heard_s = self._said_s = time.monotonic()
        self._broken_s: float | None = None

    # --- for the fleet

    def send(self, worker: str, message: dict[str, Any]) -> None:
        """To the worker of this name that has joined; nobody there: dropped."""
        for end in self._ends:
            if end.name == worker and end.incarnation is not None:
                self._frame(end.kind, json.dumps(message, separators=(",", ":")).encode())

    def restart_worker(self, worker: str, why: str) -> None:
        """Give the worker up now; the agent kills it and starts another."""
        for end in self._ends:
            if end.name == worker and end.incarnation is not None:
                self._lose_worker(end, why)
                self._frame(b"a", end.restart)

    def told_by_api(self, notice: Notice) -> None:
        """The cloud's API announces an interruption; news only if the node has not heard of it itself."""
        if self._notices.told_by_api(notice):
            self._emit(NodeNoticed(self.name, notice))

    def spared(self, time_s: float) -> bool:
        """Whether the node lives on though it should have gone; `time_s` is Unix time."""
        return self._notices.late_s(time_s) > self._times.grace_s and self.attached is not None

    def stop(self) -> None:
        """Tell the agent to kill its worker and to leave."""
        self._frame(b"a", b'{"t":"stop"}')

    @property
    def attached(self) -> asyncio.Event | None:
        """Set when the stream to the agent has ended; None while there is no stream."""
        return self._channel.closed if self._channel is not None and self._greeted else None

    def tick(self, now_s: float, lag_s: float) -> None:
        """Beat, and judge silence.

        `lag_s` is how long this process itself was not running since the last tick.
        """
        self._heard_s += lag_s
        if self._broken_s is not None:
            self._broken_s += lag_s
            if now_s - self._broken_s > self._times.grace_s:
                self._lose(f"the node has been out of reach for {self._times.grace_s:g} s")
        if self._channel is None or not self._greeted:
            return
        if now_s - self._heard_s > self._times.grace_s:
            self._lose(f"the node's agent has been silent for {self._times.grace_s:g} s")
            self._fence_wanted = True
            self._channel.close()
        elif now_s - self._said_s >= self._times.beat_s:
            self._said_s = now_s
            self._channel.write(self._link.beat())

    def gone(self, why: str) -> None:
        """The instance has ended: nothing more will come."""
        self._lose(why)
        self._over = True
        if self._connection is not None:
            self._connection.abort()

    async def tend(self) -> None:
        """Keep the stream to the agent open until cancelled.

        Raises:
            ssh.SshError: the node was not reached for `boot_s`.
        """
        try:
            reached_by_s = time.monotonic() + self._times.boot_s
            while not self._over:
                try:
                    channel = await self._attach()
                    if self._over:  # the instance ended, and our cancellation was lost, while we connected
                        return
                    self._broken_s = None
                    await channel.closed.wait()
                    self._broken_s = time.monotonic()
                    reached_by_s = self._broken_s + self._times.boot_s
                except ssh.BrokenNodeError:
                    raise
                except ssh.SshError as error:
                    if isinstance(error, ssh.DeliveryCutError):
                        reached_by_s = time.monotonic() + self._times.boot_s
                    if time.monotonic() > reached_by_s:
                        raise
                    if isinstance(error, ssh.RefusedError):
                        self._lose(str(error))
                    self._trouble(self.name, str(error))
                    # a command that failed will fail again: at a lost connection we may be quicker
                    slower = 10 if isinstance(error, ssh.CommandError) else 1
                    await asyncio.sleep(self._times.retry_s * slower)
                finally:
                    self._detach()
        finally:
            if self._forwarding is not None:
                self._forwarding.cancel()
            if self._connection is not None:
                self._connection.abort()

    async def _attach(self) -> ssh.LineChannel:
        if self._connection is None or self._connection.is_closed():
            self._connection = None
            self._connection = await ssh.connect(self._target(), max(self._times.grace_s, 1.0))
            await self._forward(self._connection)
        connection = self._connection
        try:
            if self._fence_wanted or not self._socket_path:
                await self._start_agent(connection)
            try:
                self._channel = await self._open(connection)
            except ssh.RefusedError:
                self._lose("the node's agent has died")
                self._adopt = False
                await self._start_agent(connection)
                self._channel = await self._open(connection)
            self._agent_is_new = False
        except (ssh.CommandError, ssh.BrokenNodeError):
            raise
        except ssh.SshError:
            connection.abort()
            self._connection = None
            raise
        await self._greet(self._channel)
        return self._channel

    async def _open(self, connection: asyncssh.SSHClientConnection) -> ssh.LineChannel:
        """The stream to the agent's socket.

        An sshd that forwards no sockets says no more than one behind whose socket nobody listens. If a new
        agent, which has just told us that it listens, cannot be reached, a command there is the way.
        """
        if not self._bridged:
            try:
                return await ssh.open_lines(connection, self._socket_path, self._times.grace_s)
            except ssh.RefusedError:
                if not self._agent_is_new:
                    raise
        times = self._times
        channel = await ssh.open_bridge(
            connection, self._python_words, self._socket_path, times.agent_start_s
        )
        self._bridged = True
        return channel

    async def _forward(self, connection: asyncssh.SSHClientConnection) -> None:
        """Let the node reach the anchor through this connection: by the same port again, if it had one.

        The node's sshd may not yet have noticed the end of the connection before, and hold the port for it:
        then we ask again beside all else. What goes to the anchor (backups) can wait for a while.
        """
        if self._anchor is None:
            return
        if self._forwarding is not None:
            self._forwarding.cancel()
        if self._anchor_port is None:
            try:
                listener = await connection.forward_remote_port("127.0.0.1", 0, *self._anchor)
            except (OSError, asyncssh.Error, asyncssh.ChannelListenError) as error:
                connection.abort()
                raise ssh.BrokenNodeError(
                    f"{self.name}: its sshd does not forward ports (AllowTcpForwarding): {error}"
                ) from error
            self._anchor_port = listener.get_port()
        else:
            self._forwarding = asyncio.create_task(self._forward_again(connection, self._anchor_port))

    async def _forward_again(self, connection: asyncssh.SSHClientConnection, port: int) -> None:
        assert self._anchor is not None
        while not connection.is_closed():
            with contextlib.suppress(OSError, asyncssh.Error, asyncssh.ChannelListenError):
                await connection.forward_remote_port("127.0.0.1", port, *self._anchor)
                return
            await asyncio.sleep(self._times.retry_s)

    async def _start_agent(self, connection: asyncssh.SSHClientConnection) -> None:
        times = self._times
        if self._agent_start is not None:
            self._python_words = await self._agent_start(connection, self.instance)
        command = (
            f"exec {self._python_words} -P -m parcae_cli.agent --daemon"
            f" --lease-s {times.lease_s:g} --poll-s {times.poll_s:g} --mute-s {times.mute_s:g}"
            f"{' --adopt' if self._adopt else ''}"
        ) + (f" --gpus {len(self._ends)}" if len(self._ends) > 1 else "")
        reply = await ssh.run(connection, command, times.agent_start_s)
        try:
            words = json.loads(reply.output)
            self._socket_path = str(words["socket"])
            self.pids = (int(words["pid"]),)
        except (ValueError, KeyError, TypeError) as error:
            said = (reply.error or reply.output).strip()[-500:]
            raise ssh.CommandError(
                f"the agent of {self.name} did not start (exit {reply.status}): {said}"
            ) from error
        self._fence_wanted = False
        self._agent_is_new = True

    async def _greet(self, channel: ssh.LineChannel) -> None:
        """Say who we are and what we have, and wait for the same: a stopped agent's socket still connects."""
        words: dict[str, Any] = {"controller": self._controller_id, "agent": self._agent_id}
        words |= {"have": self._link.received, "adopt": self._adopt}
        self._heard_s = self._said_s = time.monotonic()
        self._buffer.clear()
        channel.on_data = self._receive
        channel.write(json.dumps(words).encode() + b"\n")
        if channel.pending:
            self._receive(bytes(channel.pending))
        waits = [asyncio.create_task(event.wait()) for event in (self._greeting, channel.closed)]
        try:
            await asyncio.wait(waits, timeout=self._times.grace_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not self._greeted:
            if not channel.closed.is_set():
                self._lose("the node's agent does not answer")
                self._fence_wanted, self._adopt = True, False
            raise ssh.ConnectionLost(f"{self.name}: the agent has not greeted")

    def _detach(self) -> None:
        if self._channel is not None:
            self._channel.on_data = lambda data: None
            self._channel.close()
        self._channel = None
        self._greeted = False
        self._greeting.clear()
        self._outbox.clear()

    # --- lines

    def _receive(self, data: bytes) -> None:
        if self._over:
            return
        self._heard_s = time.monotonic()
        self._buffer += data
        try:
            for line in split_lines(self._buffer):
                if not self._greeted:
                    self._greeted_by(json.loads(line))
                elif (frame := self._link.accept(line)) is not None:
                    self._take(*frame)
        except (ValueError, LookupError, TypeError) as error:
            self._lose(f"the node's agent spoke nonsense: {error}")
            self._fence_wanted = True
            if self._channel is not None:
                self._channel.close()

    def _greeted_by(self, words: dict[str, Any]) -> None:
        self._notices.greeted(float(words["now_s"]))
        if words["agent"] != self._agent_id:
            self._lose("the node's agent was started anew")
            self._agent_id = words["agent"]
            self._link = Link()
            for end in self._ends:
                end.lost_up_to = 0
        for end in self._ends:
            if end.incarnation is None and end.lost_up_to:  # we have given up a worker that may still live
                self._frame(b"a", end.restart)
        self._greeted, self._adopt = True, False
        self._greeting.set()
        if self._channel is not None and (unseen := self._link.unseen(int(words["have"]))):
            self._channel.write(unseen)

    def _take(self, kind: bytes, payload: bytes) -> None:
        words = json.loads(payload)
        incarnation, gpu = (0, words.get("gpu", 0)) if kind == b"a" else of_kind(kind)
        end = self._ends[gpu]
        if kind[:1] == b"w":
            if incarnation == end.incarnation:
                self._emit(WorkerMessage(end.name, words))
        elif kind[:1] in (b"h", b"k"):
            if end.joined(incarnation, int(words.get("pid", 0))):
                self.pids = (*self.pids[:1], *(end.pid for end in self._ends if end.pid))
                self._emit(WorkerJoined(end.name, words, self._anchor_port, kind[:1] == b"k"))
        elif words["t"] == "lost":
            if words["incarnation"] == end.incarnation and end.lose():
                self._emit(WorkerLost(end.name, words["why"], alone=True))
        elif words["t"] == "failed":
            end.failures += 1
            self._emit(WorkerFailed(end.name, words["why"], end.failures))
        elif words["t"] == "notice" and (notice := self._notices.told(words)) is not None:
            self._emit(NodeNoticed(self.name, notice))

    def _frame(self, kind: bytes, payload: bytes) -> None:
        """Send now or as soon as there is a stream; lines of one turn of the loop travel together."""
        line = self._link.frame(kind, payload)
        if self._channel is None or not self._greeted:
            return
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox += line

    def _flush(self) -> None:
        if self._channel is not None and self._outbox:
            self._channel.write(bytes(self._outbox))
            self._said_s = time.monotonic()
        self._outbox.clear()

    def _lose(self, why: str) -> None:
        for end in self._ends:
            self._lose_worker(end, why)

    def _lose_worker(self, end: WorkerEnd, why: str) -> None:
        if end.lose():
            self._emit(WorkerLost(end.name, why))

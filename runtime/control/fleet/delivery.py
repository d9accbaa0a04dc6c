"""Bringing a job's data to nodes: pushed through their SSH connections, or fetched by them from a store.

A node is ready for its agent when it has the data, so until then it is booting, and the others train. What is
pushed is paced: once training is under way one piece at a time leaves this machine, whatever the number of
nodes, with a rest of three times what it took. So votes and commits, which travel on the same loop and link,
keep three quarters of both.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import asyncssh

from cloud.types import Instance
from runtime.control.data_set import DataSet
from runtime.control.fleet import ssh
from runtime.control.fleet.deploy import AgentStart
from runtime.control.node.receiver import PIECE

PIECE_BYTES = 1 << 18
# Nodes that are pushed to at a time, and rests between pieces in terms of the time that a piece takes.
_AT_ONCE = 4
_RESTS = 3.0
# A file is compressed if that makes its first piece smaller than this part of it.
_PAYS = 0.9
# A node says something every second; so long without a word means that it is not there.
_SILENT_S = 30.0
_ENDS_WITHIN_S = 5.0


class Delivery:
    """One job's data on its way to all of its nodes.

    `links` makes, for objects in a store, what a node fetches each by: URLs that are good for some hours.
    `training` says whether steps are being made, and `tell` is told in words of every node that has the data.
    """

    def __init__(
        self,
        data: DataSet,
        tell: Callable[[str, str], None],
        training: Callable[[], bool] = lambda: False,
        links: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._data, self._tell, self._training, self._links = data, tell, training, links
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._turn = asyncio.Lock()
        self._began_s: dict[str, float] = {}

    async def __call__(self, connection: asyncssh.SSHClientConnection, python: str, node: str) -> None:
        """Have the data on the node when this returns; `python` are the words that start Python there.

        Raises:
            ssh.BrokenNodeError: it will never be there: its disk is too small, or an object has changed.
            ssh.DeliveryCutError, ssh.SshError: it is not there (yet).
        """
        began_s = self._began_s.setdefault(node, time.monotonic())  # of the first try: several may be needed
        async with contextlib.AsyncExitStack() as stack:
            if not self._data.files[0].url:
                await stack.enter_async_context(self._slots)
            try:
                links = await self._linked()
                sent = await _Push(self._data, self._rest).run(connection, python, node, links)
            except (ssh.CommandError, ssh.BrokenNodeError) as error:
                self._tell(f"{node} has not got the data", str(error))
                raise
        took_s = time.monotonic() - self._began_s.pop(node, began_s)
        if sent:
            how = "fetched" if self._data.files[0].url else "sent"
            self._tell(
                f"{node} has the data",
                f"{self._data.size_bytes / 1e6:,.1f} MB, {sent / 1e6:,.1f} MB {how} in {took_s:.1f} s",
            )

    async def _linked(self) -> Mapping[str, str]:
        try:
            return await asyncio.to_thread(self._links)
        except Exception as error:
            raise ssh.CommandError(f"no links for the data could be made: {error}") from error

    async def _rest(self, send: Callable[[], Any]) -> None:
        """Send a piece, alone and with a rest after it while others train."""
        if not self._training():
            await send()
            return
        async with self._turn:
            began_s = time.monotonic()
            await send()
            await asyncio.sleep(_RESTS * (time.monotonic() - began_s))


class _Push:
    """One try at one node."""

    def __init__(self, data: DataSet, paced: Callable[[Callable[[], Any]], Any]) -> None:
        self._data, self._paced = data, paced
        self._got = 0  # bytes that the node says have come

    async def run(
        self, connection: asyncssh.SSHClientConnection, python: str, node: str, links: Mapping[str, str]
    ) -> int:
        """How many bytes had to be sent; 0 if all of it was there."""
        command = f"exec {python} -P -m parcae_cli.agent --receive"
        heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        try:
            async with connection.create_process(command, encoding=None) as process:
                process.stdin.write(
                    json.dumps(self._data.as_json() | {"links": dict(links)}).encode() + b"\n"
                )
                hearing = asyncio.create_task(self._hear(process, heard))
                sending: asyncio.Task[None] | None = None
                said: dict[str, Any] = {}
                try:
                    while "end" not in (words := await heard.get()):
                        if "have" in words and not links:
                            sending = asyncio.create_task(self._send(process, words["have"]))
                        elif "done" in words or "error" in words:
                            said = words  # it ends now; until it has, the channel stays open
                    if said:
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(process.wait_closed(), _ENDS_WITHIN_S)
                finally:
                    hearing.cancel()
                    if sending is not None:
                        sending.cancel()
                        await asyncio.gather(sending, return_exceptions=True)
                    process.close()
                if "error" in said:
                    kind = ssh.BrokenNodeError if said["fatal"] else ssh.CommandError
                    raise kind(f"{node}: {said['error']}")
                if not said:
                    raise self._cut(f"{node}: the delivery of data broke off: {words['end']}")
                return int(said["sent"])
        except (OSError, asyncssh.Error) as error:
            raise self._cut(f"{node}: the delivery of data broke off: {error}") from error

    def _cut(self, said: str) -> ssh.SshError:
        return ssh.DeliveryCutError(said) if self._got else ssh.ConnectionLost(said)

    async def _hear(self, process: asyncssh.SSHClientProcess[bytes], heard: asyncio.Queue[Any]) -> None:
        """What the node says, until it says no more."""
        try:
            while line := await asyncio.wait_for(process.stdout.readline(), _SILENT_S):
                words = json.loads(line)
                self._got = max(self._got, words.get("got", 0))
                heard.put_nowait(words)
            error = (await asyncio.wait_for(process.stderr.read(500), _SILENT_S)).decode(errors="replace")
            heard.put_nowait({"end": error.strip()[-300:] or "its end has closed"})
        except TimeoutError:
            heard.put_nowait({"end": f"nothing was heard for {_SILENT_S:g} s"})
        except (OSError, asyncssh.Error, ValueError) as error:
            heard.put_nowait({"end": str(error) or type(error).__name__})

    async def _send(self, process: asyncssh.SSHClientProcess[bytes], have: list[int]) -> None:
        """What is missing of each file. What goes wrong here is heard from the other side."""
        with contextlib.suppress(OSError, asyncssh.Error):
            for index, file in enumerate(self._data.files):
                if have[index] < file.size_bytes:
                    await self._send_file(process, index, Path(file.path), have[index])

    async def _send_file(
        self, process: asyncssh.SSHClientProcess[bytes], index: int, path: Path, begin: int
    ) -> None:
        pays: bool | None = None
        with path.open("rb") as file:
            file.seek(begin)
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                packed = piece if pays is False else await asyncio.to_thread(zlib.compress, piece, 1)
                if pays is None:
                    pays = len(packed) < _PAYS * len(piece)
                small = pays and len(packed) < len(piece)
                frame = packed if small else piece

                async def send(frame: bytes = frame, small: bool = bool(small)) -> None:
                    process.stdin.write(PIECE.pack(index, len(frame), small))
                    process.stdin.write(frame)
                    await process.stdin.drain()

                await self._paced(send)


class WithData:
    """An AgentStart that brings the data before the agent starts."""

    def __init__(self, delivery: Delivery, start: AgentStart | None) -> None:
        self._delivery, self._start = delivery, start

    async def __call__(self, connection: asyncssh.SSHClientConnection, instance: Instance) -> str:
        """The words of the AgentStart within."""
        words = shlex.quote(sys.executable)
        if self._start is not None:
            words = await self._start(connection, instance)
        await self._delivery(connection, words, instance.name)
        return words

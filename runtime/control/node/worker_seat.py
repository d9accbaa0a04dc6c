"""One GPU's place on a node, as the agent sees it: the worker there, its lines, its deaths and successors."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from runtime.control.fleet.link import split_lines
from runtime.control.node.worker_process import WorkerPlan, WorkerProcess

_RECEIVE_BYTES = 262144
_PING = b'{"t":"ping"}\n'


@dataclass(frozen=True)
class SeatTimes:
    """Seconds: until a silent worker is asked, until a mute one is killed, until a hello must be there."""

    beat_s: float
    mute_s: float
    hello_s: float


class WorkerSeat:
    """Starts a worker, passes its lines on as frames (kind, payload), and replaces it when it is gone.

    On a node with several GPUs every seat is number `plan.gpu`; the kinds of its frames carry that number,
    except for the first's.
    """

    def __init__(
        self,
        plan: WorkerPlan,
        times: SeatTimes,
        selector: selectors.BaseSelector,
        tell: Callable[[Sequence[tuple[bytes, bytes]]], None],
        note: Callable[[str], None],
    ) -> None:
        self.worker: WorkerProcess | None = None
        self._plan, self._times = plan, times
        self._selector = selector
        self._tell, self._note = tell, note
        self._from_worker = bytearray()
        self._to_worker = bytearray()
        self._incarnation = 0
        self._hello_seen, self._hello = False, b""
        self._short_lives = 0
        self._heard_s = self._pinged_s = self._born_s = self._start_s = time.monotonic()

    def look_at_clock(self, now_s: float, wanted: bool, lag_s: float) -> None:
        """Start a worker when it is `wanted` and time to; ping a silent one, give up a mute one.

        `lag_s` is how long the agent itself was not running: the worker's silence is not its fault.
        """
        times = self._times
        self._heard_s += lag_s
        if self.worker is None:
            if wanted and now_s >= self._start_s:
                self._start()
        elif not self._hello_seen:
            if now_s - self._born_s > times.hello_s:
                self.lose(f"it has not said hello within {times.hello_s:g} s")
        elif now_s - self._heard_s > times.mute_s:
            self.lose(f"it has not answered for {times.mute_s:g} s")
        elif now_s - self._heard_s > times.beat_s and now_s - self._pinged_s > times.beat_s:
            self._pinged_s = now_s
            self._give(_PING)

    def give(self, incarnation: int, line: bytes) -> None:
        """A line for this incarnation of the worker; for another one it comes too late."""
        if self.worker is not None and incarnation == self.worker.incarnation:
            self._give(line + b"\n")

    def give_up(self, incarnation: int) -> None:
        """End the worker if it is this incarnation, or an older one."""
        if self.worker is not None and self.worker.incarnation <= incarnation:
            self.lose("the controller has given it up")

    def kept(self) -> list[tuple[bytes, bytes]]:
        """The worker that is there and has said hello, for a controller that goes on with it."""
        return [(self._kind(b"k"), self._hello)] if self.worker is not None and self._hello_seen else []

    def _start(self) -> None:
        self._incarnation += 1
        self.worker = WorkerProcess(self._incarnation, self._plan)
        self._hello_seen = False
        self._born_s = self._heard_s = time.monotonic()
        serve = partial(self._serve, self.worker)
        self._selector.register(self.worker.control, selectors.EVENT_READ, serve)
        if self.worker.nursery is not None:
            born = partial(self._born, self.worker)
            self._selector.register(self.worker.nursery, selectors.EVENT_READ, born)

    def _born(self, worker: WorkerProcess, mask: int) -> None:
        if worker.nursery is not None:
            self._selector.unregister(worker.nursery)
            worker.born()

    def _serve(self, worker: WorkerProcess, mask: int) -> None:
        if self.worker is not worker:
            return
        if mask & selectors.EVENT_WRITE:
            self._flush()
        if not mask & selectors.EVENT_READ:
            return
        try:
            data = worker.control.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.lose("its control connection closed: the process has ended")
            return
        self._heard_s = time.monotonic()
        self._from_worker += data
        frames = []
        for line in split_lines(self._from_worker):
            if not self._hello_seen:
                self._hello_seen, self._hello = True, line
                frames.append((self._kind(b"h"), line))
            elif not (len(line) < 32 and b'"pong"' in line):
                frames.append((self._kind(b"w"), line))
        if frames:
            self._tell(frames)

    def _kind(self, letter: bytes) -> bytes:
        return line_kind(letter, self._incarnation, self._plan.gpu)

    def _give(self, data: bytes) -> None:
        waiting = bool(self._to_worker)
        self._to_worker += data
        if not waiting:
            self._flush()

    def _flush(self) -> None:
        assert self.worker is not None
        del self._to_worker[: self.worker.send(bytes(self._to_worker))]
        want_writes(self._selector, self.worker.control, bool(self._to_worker))

    def lose(self, why: str) -> None:
        """End the worker, which is there, and say so. The next one starts soon."""
        worker = self.worker
        assert worker is not None
        self._selector.unregister(worker.control)
        if worker.nursery is not None:
            self._selector.unregister(worker.nursery)
        self.worker = None
        self._from_worker.clear()
        self._to_worker.clear()
        words = {"t": "lost" if self._hello_seen else "failed", "incarnation": worker.incarnation, "why": why}
        self._tell([(b"a", json.dumps(words | gpu_words(self._plan.gpu)).encode())])
        worker.kill()
        self._note(f"worker {worker.incarnation}{self._plan.where} is gone: {why}")
        now_s = time.monotonic()
        # A worker that lived is replaced at once; one that keeps failing at the start is tried ever more
        # slowly.
        self._short_lives = 0 if self._hello_seen else self._short_lives + 1
        self._start_s = now_s + (min(10.0, 0.25 * 2**self._short_lives) if self._short_lives else 0.0)


def line_kind(letter: bytes, incarnation: int, gpu: int) -> bytes:
    """The kind of a line of a worker: `w3`, or `w3.1` for the second GPU's."""
    return b"%s%d" % (letter, incarnation) + (b".%d" % gpu if gpu else b"")


def of_kind(kind: bytes) -> tuple[int, int]:
    """The incarnation and the GPU that a line of a worker is from or to.

    Raises:
        ValueError: it is no such kind.
    """
    incarnation, _, gpu = kind[1:].partition(b".")
    return int(incarnation), int(gpu or b"0")


def gpu_words(gpu: int) -> dict[str, int]:
    """What the agent's words say of a worker's GPU: nothing for the first."""
    return {"gpu": gpu} if gpu else {}


def want_writes(selector: selectors.BaseSelector, connection: socket.socket, wanted: bool) -> None:
    """Be told when the connection takes more, or no longer."""
    events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
    key = selector.get_key(connection)
    if key.events != events:
        selector.modify(connection, events, key.data)

"""The agent: what runs on every node. It holds the workers, watches for notices, and obeys its lease.

One thread around a selector (plus one that polls the metadata service), standard library only, so that it is
up in some 50 ms. It outlives SSH sessions: whoever attaches to its socket speaks the lines of
`runtime.control.fleet.link`:

- kind `w<n>`: a line from or to worker incarnation n, passed on unread; `h<n>`: that worker's first line,
  its hello; `k<n>`: the hello of a worker that a controller which takes over has kept. On a node with
  several GPUs, `w<n>.<k>` and so on for the worker of GPU k, from 1.
- kind `a`: the agent's own words, JSON: {"t":"lost","incarnation","why"},
  {"t":"failed","incarnation","why"} (ended
  before its hello), {"t":"notice","kind","deadline_s"}; and to it {"t":"restart","incarnation"} (kill that
  incarnation or any older one, start the next), {"t":"stop"} (kill the workers and leave). Words about
  the worker of GPU k have "gpu": k, from 1.

Nobody heard from for `lease_s`: the workers are killed and the agent leaves, because by then another machine
may do its work. If the agent dies, its end of a worker's control socket closes, and the worker leaves by
itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cloud.types import Notice
from runtime.control.fleet.link import Link, split_lines
from runtime.control.node.gce_notices import GceNoticeWatch
from runtime.control.node.notices import NoticeWatch
from runtime.control.node.worker_process import WorkerPlan, ignore_children
from runtime.control.node.worker_seat import SeatTimes, WorkerSeat, of_kind, want_writes

_RECEIVE_BYTES = 262144
_MAX_SOCKET_PATH_BYTES = 100
_TOUCH_EVERY_S = 1.0


@dataclass(frozen=True)
class AgentOptions:
    """What an agent is told when it starts. All times are in seconds.

    `metadata_flavor` is the cloud in whose words the metadata service speaks, `aws` or `gcp`; `notice_s` is
    how long before the end the cloud warns, where its notice has no deadline (gcp).
    `lease_file` is touched while somebody holds the lease: the node's dead man's switch looks at its age.
    There is a worker for each of `gpus` GPUs.
    """

    folder: Path
    log: Path
    register: Path
    engine: str = "runtime.engine.worker"
    zygote: Path | None = None
    metadata_url: str | None = None
    metadata_flavor: str = "aws"
    notice_s: float = 30.0
    poll_s: float = 5.0
    lease_s: float = 60.0
    beat_s: float = 0.5
    mute_s: float = 3.0
    hello_s: float = 120.0
    lease_file: Path | None = None
    gpus: int = 1


# By the flavour of the metadata service.
_WATCHES: Mapping[str, Callable[..., NoticeWatch | GceNoticeWatch]] = {
    "aws": lambda url, options, tell: NoticeWatch(url, options.poll_s, tell),
    "gcp": lambda url, options, tell: GceNoticeWatch(url, options.notice_s, options.poll_s, tell),
}


class Agent:
    """The daemon's state and loop. `listen`, then `run`."""

    def __init__(self, options: AgentOptions) -> None:
        self._options = options
        self.id = secrets.token_hex(8)
        self.socket_path = str(options.folder / "agent.sock")
        self._selector = selectors.DefaultSelector()
        self._ended = False
        self._link = Link()
        self._controller: socket.socket | None = None
        self._controller_id = ""
        self._greeted = False
        self._from_controller = bytearray()
        self._to_controller = bytearray()
        times = SeatTimes(options.beat_s, options.mute_s, options.hello_s)
        self._seats = [
            WorkerSeat(_worker_plan(options, gpu), times, self._selector, self._frame, self._note)
            for gpu in range(options.gpus)
        ]
        self._notices: list[bytes] = []  # each is news to a controller that takes over later
        self._wake_read, self._wake_write = socket.socketpair()
        self._touched_s = 0.0
        now_s = time.monotonic()
        self._renewed_s = self._said_s = now_s

    def listen(self) -> None:
        """Open the agent's socket and write down who we are, for whoever has to end us."""
        ignore_children()
        if len(os.fsencode(self.socket_path)) > _MAX_SOCKET_PATH_BYTES:
            self.socket_path = tempfile.mkdtemp(prefix="parcae-") + "/agent.sock"
        Path(self.socket_path).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.socket_path)
        Path(self.socket_path).chmod(0o600)
        listener.listen(8)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, lambda mask: self._accept(listener))
        self._wake_read.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, lambda mask: self._pass_notices())
        # Where a later agent, or whoever removes the folder, finds the socket.
        about = {"agent": self.id, "socket": self.socket_path, "pid": os.getpid()}
        (self._options.folder / "agent.json").write_text(json.dumps(about))

    def run(self) -> None:
        """Serve until told to stop or until the lease runs out."""
        options = self._options
        if options.metadata_url:
            _WATCHES[options.metadata_flavor](options.metadata_url, options, self._tell_notice).start()
        tick_s = min(0.25, self._options.beat_s / 2, self._options.lease_s / 4)
        last_s = time.monotonic()
        while not self._ended:
            for key, mask in self._selector.select(tick_s):
                key.data(mask)
                if self._ended:
                    break
            now_s = time.monotonic()
            lag_s = now_s - last_s if now_s - last_s > 1.0 else 0.0  # we were stopped or starved
            last_s = now_s
            self._look_at_clock(now_s, lag_s)
        for seat in self._seats:
            if seat.worker is not None:
                seat.worker.kill()
        with contextlib.suppress(OSError):
            Path(self.socket_path).unlink()

    # --- time

    def _look_at_clock(self, now_s: float, lag_s: float) -> None:
        options = self._options
        if now_s - self._renewed_s > options.lease_s:
            self._note(f"nobody has renewed the lease for {options.lease_s:g} s: leaving")
            self._ended = True
            return
        if self._controller is not None and self._greeted and now_s - self._said_s >= options.beat_s:
            self._say(self._link.beat())
        for seat in self._seats:
            seat.look_at_clock(now_s, bool(self._controller_id), lag_s)

    def _note(self, text: str) -> None:
        """A line in the node's log, which is our standard error."""
        print(f"{time.strftime('%H:%M:%S')} agent: {text}", file=sys.stderr, flush=True)

    # --- notices: from the polling thread to the link

    def _tell_notice(self, notice: Notice) -> None:
        words = {"t": "notice", "kind": str(notice.kind), "deadline_s": notice.deadline_s}
        self._wake_write.send(json.dumps(words).encode() + b"\n")

    def _pass_notices(self) -> None:
        for line in self._wake_read.recv(_RECEIVE_BYTES).splitlines():
            self._notices.append(line)
            self._frame([(b"a", line)])

    # --- the controller

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        self._drop_controller()  # a new connection means that the old one is dead
        connection.setblocking(False)
        self._controller = connection
        self._selector.register(connection, selectors.EVENT_READ, partial(self._serve_controller, connection))

    def _drop_controller(self) -> None:
        if self._controller is not None:
            self._selector.unregister(self._controller)
            self._controller.close()
        self._controller = None
        self._greeted = False
        self._from_controller.clear()
        self._to_controller.clear()

    def _serve_controller(self, connection: socket.socket, mask: int) -> None:
        if self._controller is not connection:  # it was dropped by another event of the same turn
            return
        if mask & selectors.EVENT_WRITE:
            self._flush_controller()
        if not mask & selectors.EVENT_READ or self._controller is not connection:
            return
        try:
            data = connection.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop_controller()
            return
        self._renew()
        self._from_controller += data
        try:
            for line in split_lines(self._from_controller):
                if not self._greeted:
                    self._greet(line)
                elif (frame := self._link.accept(line)) is not None:
                    self._obey(*frame)
        except (ValueError, LookupError, TypeError) as error:
            self._note(f"dropping a controller that does not speak our language: {error}")
            self._drop_controller()

    def _renew(self) -> None:
        """Somebody is there."""
        self._renewed_s = time.monotonic()
        if self._options.lease_file is not None and self._renewed_s - self._touched_s > _TOUCH_EVERY_S:
            self._touched_s = self._renewed_s
            with contextlib.suppress(OSError):
                self._options.lease_file.touch()

    def _greet(self, line: bytes) -> None:
        """Who has connected, and what has it got?

        A new controller gets a new link, and a new worker, unless it goes on with an old one's job.
        """
        words = json.loads(line)
        if words["controller"] != self._controller_id:
            self._controller_id = words["controller"]
            if not words.get("adopt"):
                for seat in self._seats:
                    if seat.worker is not None:
                        seat.lose("another controller has taken over")
            self._link = Link()
            for kind, hello in (kept for seat in self._seats for kept in seat.kept()):
                self._link.frame(kind, hello)
            for notice in self._notices:
                self._link.frame(b"a", notice)
            have = 0
        else:
            have = int(words["have"])
        self._greeted = True
        answer = {"agent": self.id, "have": self._link.received, "pid": os.getpid(), "now_s": time.time()}
        self._say(json.dumps(answer).encode() + b"\n" + self._link.unseen(have))

    def _obey(self, kind: bytes, payload: bytes) -> None:
        if kind[:1] == b"w":
            incarnation, gpu = of_kind(kind)
            self._seats[gpu].give(incarnation, payload)
            return
        words = json.loads(payload)
        if words["t"] == "restart":
            self._seats[words.get("gpu", 0)].give_up(words["incarnation"])
        elif words["t"] == "stop":
            self._ended = True

    def _frame(self, lines: Sequence[tuple[bytes, bytes]]) -> None:
        data = b"".join(self._link.frame(kind, payload) for kind, payload in lines)
        if self._greeted:
            self._say(data)

    def _say(self, data: bytes) -> None:
        self._said_s = time.monotonic()
        if self._to_controller:
            self._to_controller += data
            return
        self._to_controller += data
        self._flush_controller()

    def _flush_controller(self) -> None:
        connection = self._controller
        if connection is None:
            return
        try:
            taken = connection.send(self._to_controller, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            taken = 0
        except OSError:
            self._drop_controller()
            return
        del self._to_controller[:taken]
        want_writes(self._selector, connection, bool(self._to_controller))


def _worker_plan(options: AgentOptions, gpu: int) -> WorkerPlan:
    return WorkerPlan(
        options.folder, options.log, options.register, options.engine, options.zygote, gpu, options.gpus
    )

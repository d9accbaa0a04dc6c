"""Moving layer state between workers, and to and from the backup, over plain TCP."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from runtime.control import wire
from runtime.engine.gradient_log import GradientLog
from runtime.engine.state import bytes_of

# How long a source may lag behind the commit that its receiver has already seen.
_SOURCE_LAG_S = 10.0
_STREAMS = 4
# Less than this is not worth a stream of its own.
_STREAM_BYTES = 4 << 20
# How often who waits for a step's gradients is looked after: it may have gone.
_LOOK_S = 0.5


@dataclass(frozen=True)
class Address:
    """Where a transfer server listens."""

    host: str
    port: int


@dataclass(frozen=True)
class Traffic:
    """The state that a worker has received for a generation: at the switch, and before it. Bytes, seconds."""

    fetched_bytes: int = 0
    fetch_s: float = 0.0
    ahead_bytes: int = 0
    ahead_s: float = 0.0


NO_TRAFFIC = Traffic()


class StateServer:
    """Serves this worker's layers to others, a thread for each connection.

    GET sends a layer's own memory, and only at exactly the step that is asked for: its receiver has to vote
    before the layer changes. COPY sends a snapshot at the step where the layer stands, since training goes on
    meanwhile; whoever has copied a layer can FOLLOW it.
    """

    def __init__(self, host: str, point: Callable[[str], None]) -> None:
        self._listener = socket.create_server((host, 0), backlog=128)
        self.address = Address(host, int(self._listener.getsockname()[1]))
        self.token = b"\0" * wire.TOKEN_BYTES
        self._changed = threading.Condition()
        self._step = -1
        self._layers: Mapping[int, Callable[[], memoryview]] = {}
        self._log = GradientLog()
        self._followers = itertools.count()
        self._point = point
        threading.Thread(target=self._accept, name="state-server", daemon=True).start()

    def publish(self, step: int, layers: Mapping[int, Callable[[], memoryview]]) -> None:
        """From now on these layers, which stand before `step`, can be fetched."""
        with self._changed:
            self._step, self._layers = step, layers
            self._changed.notify_all()

    def withdraw(self) -> None:
        """Nothing can be fetched while the optimiser changes the layers. Waits for a snapshot being taken."""
        self.publish(-1, {})

    def keep(self, layer: int, step: int, gradient: torch.Tensor) -> None:
        """The layer's `step` is committed with this gradient, which stays as it is: for its followers."""
        with self._changed:
            self._log.add(layer, step, gradient)
            self._changed.notify_all()

    @property
    def followed(self) -> frozenset[int]:
        """The layers whose gradients somebody needs."""
        with self._changed:
            return self._log.followed

    def _accept(self) -> None:
        while True:
            sock = wire.accept(self._listener)
            threading.Thread(target=self._serve, args=(sock,), name="state-send", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            follower, scratch = next(self._followers), bytearray()
            try:
                while (request := wire.receive_request(sock, self.token)) is not None:
                    if request.operation == wire.COPY:
                        scratch = self._send_copy(sock, request.layer, follower, scratch)
                    elif request.operation == wire.FOLLOW:
                        self._send_gradient(sock, request, follower)
                    else:
                        self._send_layer(sock, request)
            finally:
                with self._changed:
                    self._log.leave(follower)

    def _send_layer(self, sock: socket.socket, request: wire.Request) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._step >= request.step, timeout=_SOURCE_LAG_S)
            source = self._layers.get(request.layer) if self._step == request.step else None
        if source is None:
            wire.send_size(sock, 0)
            return
        view = source()
        wire.send_size(sock, len(view))
        self._send_halves(sock, view, "send")

    def _send_copy(self, sock: socket.socket, layer: int, follower: int, scratch: bytearray) -> bytearray:
        """Returns the memory of the snapshot, for the next one: fresh pages would cost more than the copy."""
        with self._changed:
            self._changed.wait_for(lambda: self._step >= 0, timeout=_SOURCE_LAG_S)
            step, source = self._step, self._layers.get(layer)
            if source is not None:
                live = source()
                if len(scratch) < len(live):
                    scratch = bytearray(len(live))
                snapshot = memoryview(scratch)[: len(live)]
                # Under the lock, so that the optimiser cannot begin; torch copies without the interpreter's.
                torch.frombuffer(snapshot, dtype=torch.uint8).copy_(torch.frombuffer(live, dtype=torch.uint8))
                self._log.follow(layer, follower, step)
        if source is None:
            wire.send_version(sock, 0, 0)
            return scratch
        wire.send_version(sock, len(snapshot), step)
        self._send_halves(sock, snapshot, "copy_send")
        return scratch

    def _send_gradient(self, sock: socket.socket, request: wire.Request, follower: int) -> None:
        layer, step = request.layer, request.step
        while True:
            with self._changed:
                gradient = self._log.get(layer, step)
                newest = max(self._step, step + 1)
                if gradient is not None or self._step > step:
                    break
                self._changed.wait(_LOOK_S)
            if wire.closed(sock):
                raise wire.TransferError("the follower has gone")
        view = bytes_of(gradient) if gradient is not None else memoryview(b"")
        wire.send_version(sock, len(view), newest)
        sock.sendall(view)
        with self._changed:
            self._log.follow(layer, follower, step + 1)

    def _send_halves(self, sock: socket.socket, view: memoryview, point: str) -> None:
        half = len(view) // 2
        sock.sendall(view[:half])
        self._point(point)
        sock.sendall(view[half:])


class FetchError(OSError):
    """State could not be had from `source`; the fault may lie at either end."""

    def __init__(self, source: Address, why: OSError) -> None:
        super().__init__(f"no state from {source.host}:{source.port}: {why}")
        self.source = source


def split_streams(sizes: Mapping[int, int]) -> list[list[int]]:
    """The layers of one source (index -> bytes) dealt out to a few streams of about the same size."""
    count = max(1, min(_STREAMS, len(sizes), sum(sizes.values()) // _STREAM_BYTES))
    parts: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    for layer in sorted(sizes, key=lambda index: (-sizes[index], index)):
        lightest = load.index(min(load))
        parts[lightest].append(layer)
        load[lightest] += sizes[layer]
    return parts


def fetch_layers(
    step: int,
    wanted: Sequence[tuple[int, Address]],
    views: Mapping[int, memoryview],
    token: bytes,
    point: Callable[[str], None],
) -> int:
    """Fetch layers of `step` from their sources straight into `views`, over several streams at once.

    Returns the number of bytes moved.

    Raises:
        FetchError: a source went away or does not have its layer; some views may be half filled.
    """
    by_source: dict[Address, dict[int, int]] = defaultdict(dict)
    for layer, source in wanted:
        by_source[source][layer] = len(views[layer])
    streams = [(source, part) for source, sizes in by_source.items() for part in split_streams(sizes)]
    errors: list[FetchError] = []

    def stream(source: Address, layers: Sequence[int]) -> None:
        try:
            with wire.connect(source.host, source.port, _SOURCE_LAG_S) as sock:
                sock.settimeout(_SOURCE_LAG_S * 3)
                for layer in layers:
                    if errors:
                        return
                    wire.get_into(sock, layer, step, views[layer], token)
                    point("receive")
        except OSError as error:
            errors.append(FetchError(source, error))

    threads = [threading.Thread(target=stream, args=part, name="fetch", daemon=True) for part in streams[1:]]
    for thread in threads:
        thread.start()
    if streams:
        stream(*streams[0])
    for thread in threads:
        thread.join()
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # its traceback holds this frame, and so the views
    return sum(len(views[layer]) for layer, _ in wanted)

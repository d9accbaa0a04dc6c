"""The in-memory backup on the anchor (the paper's ParcaePS): serves what its store holds over plain TCP."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Mapping

from runtime.control import wire
from runtime.control.backup.stores import FollowedState, PushedCopies, Store


class Backup:
    """Serves GET, PUT and GRADIENT of layers, a thread for each connection.

    With `follow` one state is kept and gradients bring it forward, otherwise copies that are pushed.
    What comes of generations below `floor` is not taken. `listener` is a listening socket, by default a new
    one of 127.0.0.1.
    """

    def __init__(
        self,
        layers: int,
        token: bytes,
        listener: socket.socket | None = None,
        follow: bool = False,
        floor: int = 0,
    ) -> None:
        self.store: Store = FollowedState(layers, floor) if follow else PushedCopies(layers, floor)
        self._layers = layers
        self._token = token
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._listener = listener or socket.create_server(("127.0.0.1", 0), backlog=64)
        address = self._listener.getsockname()
        self.host, self.port = str(address[0]), int(address[1])
        threading.Thread(target=self._accept, name="backup", daemon=True).start()

    def latest(self) -> int | None:
        """The newest step of which every layer is here, or None."""
        return self.store.latest()

    def wait_for(self, step: int, timeout_s: float) -> bool:
        """Whether the state of `step`, or of a later one, is whole before `timeout_s` is over."""
        changed = self.store.changed
        with changed:
            return changed.wait_for(lambda: (self.store.latest() or 0) >= step, timeout_s)

    def weights_digests(self, step: int) -> dict[int, str] | None:
        """SHA-256 of every layer's fp32 weights, the first row of its [3, N] state; None: not at `step`."""
        copy = self.store.copy()
        if copy is None or copy[0] != step:
            return None
        return {n: hashlib.sha256(memoryview(b)[: len(b) // 3]).hexdigest() for n, b in copy[1].items()}

    def load(self, step: int, layers: Mapping[int, bytes]) -> None:
        """Take over a state from elsewhere, all layers of it."""
        for layer, blob in layers.items():
            self.store.put(step, layer, bytearray(blob))

    def close(self) -> None:
        """Stop listening and drop the connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts; closing alone does not
        self._listener.close()
        with self._lock:
            connections = list(self._connections)
        for sock in connections:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.store.close()

    def _accept(self) -> None:
        while True:
            try:
                sock = wire.accept(self._listener)
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), name="backup-connection", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with self._lock:
            self._connections.add(sock)
        answer: dict[int, Callable[[socket.socket, wire.Request], None]]
        answer = {wire.PUT: self._take_state, wire.GRADIENT: self._take_gradient, wire.GET: self._send}
        try:
            with sock:
                while (request := wire.receive_request(sock, self._token)) is not None:
                    answer[request.operation](sock, request)
        except OSError:
            return  # the worker died or the job ended; what had not arrived whole was never visible
        finally:
            with self._lock:
                self._connections.discard(sock)

    def _take_state(self, sock: socket.socket, request: wire.Request) -> None:
        blob = bytearray(request.size_bytes)
        wire.receive_into(sock, memoryview(blob))
        self.store.put(request.step, request.layer, blob, request.generation)
        wire.send_size(sock, 1)

    def _take_gradient(self, sock: socket.socket, request: wire.Request) -> None:
        optimiser = wire.receive_optimiser(sock)
        blob = bytearray(request.size_bytes)
        wire.receive_into(sock, memoryview(blob))
        self.store.gradient(request.step, request.layer, optimiser, blob, request.generation)
        wire.send_size(sock, 1)

    def _send(self, sock: socket.socket, request: wire.Request) -> None:
        blob = self.store.get(request.step, request.layer)
        wire.send_size(sock, 0 if blob is None else len(blob))
        if blob is not None:
            sock.sendall(blob)

"""The in-memory backup on the anchor (the paper's ParcaePS): the whole state of a few recent steps.

It holds raw bytes, layer by layer, and knows nothing of torch. A step counts once every layer of it has
arrived whole; older complete steps are dropped then, so memory is bounded by `keep` + 1 times the state.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Mapping

from runtime.control import wire


class Backup:
    """Serves GET and PUT of layers on a loopback or private address, a thread for each connection."""

    def __init__(self, layers: int, token: bytes, host: str = "127.0.0.1", keep: int = 2) -> None:
        self._layers = layers
        self._token = token
        self._keep = keep
        self._blobs: dict[int, dict[int, bytearray]] = {}  # step -> layer -> bytes
        self._forgotten_until = -1  # a PUT of a step up to this one comes too late
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._connections: set[socket.socket] = set()
        self._listener = socket.create_server((host, 0), backlog=64)
        self.host, self.port = host, int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="backup", daemon=True).start()

    def latest(self) -> int | None:
        """The newest step of which every layer is here, or None."""
        with self._lock:
            return self._latest()

    def _latest(self) -> int | None:
        return max((s for s, blobs in self._blobs.items() if len(blobs) == self._layers), default=None)

    def wait_for(self, step: int, timeout_s: float) -> bool:
        """Whether the copy of `step`, or of a later one, is whole before `timeout_s` is over."""
        with self._arrived:
            return self._arrived.wait_for(lambda: (self._latest() or 0) >= step, timeout_s)

    def weights_digest(self, step: int, layer: int) -> str:
        """SHA-256 of a layer's fp32 weights: the first row of its [3, N] state."""
        with self._lock:
            blob = self._blobs[step][layer]
        return hashlib.sha256(memoryview(blob)[: len(blob) // 3]).hexdigest()

    def copy(self, step: int) -> dict[int, bytearray] | None:
        """The layers of a whole copy, not to be changed; None if there is none of that step."""
        with self._lock:
            layers = self._blobs.get(step, {})
            return dict(layers) if len(layers) == self._layers else None

    def load(self, step: int, layers: Mapping[int, bytes]) -> None:
        """Take over a copy from elsewhere, all layers of it."""
        with self._arrived:
            self._blobs[step] = {layer: bytearray(blob) for layer, blob in layers.items()}
            self._arrived.notify_all()

    def forget_after(self, step: int) -> None:
        """Drop what belongs to steps after `step`: the job went back, and those will be done again."""
        with self._lock:
            for later in [s for s in self._blobs if s > step]:
                del self._blobs[later]

    @property
    def size_bytes(self) -> int:
        """Memory held by the copies."""
        with self._lock:
            return sum(len(blob) for blobs in self._blobs.values() for blob in blobs.values())

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

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), name="backup-connection", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with self._lock:
            self._connections.add(sock)
        try:
            with sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while (request := wire.receive_request(sock, self._token)) is not None:
                    if request.operation == wire.PUT:
                        self._store(sock, request)
                    else:
                        self._send(sock, request)
        except OSError:
            return  # the worker died or the job ended; what had not arrived whole was never visible
        finally:
            with self._lock:
                self._connections.discard(sock)

    def _store(self, sock: socket.socket, request: wire.Request) -> None:
        blob = bytearray(request.size_bytes)
        wire.receive_into(sock, memoryview(blob))
        with self._lock:
            if request.step > self._forgotten_until:
                self._blobs.setdefault(request.step, {})[request.layer] = blob
                self._drop_old()
                self._arrived.notify_all()
        wire.send_size(sock, 1)

    def _drop_old(self) -> None:
        complete = sorted(step for step, blobs in self._blobs.items() if len(blobs) == self._layers)
        if len(complete) >= self._keep:
            oldest = complete[-self._keep]
            self._forgotten_until = oldest - 1
            for step in [s for s in self._blobs if s < oldest]:
                del self._blobs[step]

    def _send(self, sock: socket.socket, request: wire.Request) -> None:
        with self._lock:
            blob = self._blobs.get(request.step, {}).get(request.layer)
        wire.send_size(sock, 0 if blob is None else len(blob))
        if blob is not None:
            sock.sendall(blob)

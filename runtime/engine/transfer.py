"""Moving layer state between workers, and to and from the backup, over plain TCP."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from runtime.control import wire
from runtime.engine.state import bytes_of

# How long a source may lag behind the commit that its receiver has already seen.
_SOURCE_LAG_S = 10.0
_STREAMS = 4


@dataclass(frozen=True)
class Address:
    """Where a transfer server listens."""

    host: str
    port: int


class StateServer:
    """Serves this worker's layers to others. A layer is sent only at exactly the step that is asked for."""

    def __init__(self, host: str, point: Callable[[str], None]) -> None:
        self._listener = socket.create_server((host, 0), backlog=128)
        self.address = Address(host, int(self._listener.getsockname()[1]))
        self.token = b"\0" * wire.TOKEN_BYTES
        self._changed = threading.Condition()
        self._step = -1
        self._layers: Mapping[int, Callable[[], memoryview]] = {}
        self._point = point
        threading.Thread(target=self._accept, name="state-server", daemon=True).start()

    def publish(self, step: int, layers: Mapping[int, Callable[[], memoryview]]) -> None:
        """From now on these layers, which stand before `step`, can be fetched."""
        with self._changed:
            self._step, self._layers = step, layers
            self._changed.notify_all()

    def withdraw(self) -> None:
        """Nothing can be fetched while the optimiser changes the layers."""
        self.publish(-1, {})

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(sock,), name="state-send", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while (request := wire.receive_request(sock, self.token)) is not None:
                with self._changed:
                    self._changed.wait_for(lambda: self._step >= request.step, timeout=_SOURCE_LAG_S)
                    source = self._layers.get(request.layer) if self._step == request.step else None
                if source is None:
                    wire.send_size(sock, 0)
                    continue
                view = source()
                wire.send_size(sock, len(view))
                half = len(view) // 2
                sock.sendall(view[:half])
                self._point("send")
                sock.sendall(view[half:])


def fetch_layers(
    step: int,
    wanted: Sequence[tuple[int, Address]],
    views: Mapping[int, memoryview],
    token: bytes,
    point: Callable[[str], None],
) -> int:
    """Fetch layers of `step` from their sources straight into `views`, several sources at once.

    Returns the number of bytes moved.

    Raises:
        OSError: a source went away or does not have its layer; some views may be half filled.
    """
    by_source: dict[Address, list[int]] = defaultdict(list)
    for layer, source in wanted:
        by_source[source].append(layer)
    jobs: queue.SimpleQueue[tuple[Address, list[int]]] = queue.SimpleQueue()
    for job in by_source.items():
        jobs.put(job)
    errors: list[OSError] = []

    def stream() -> None:
        try:
            while not errors:
                source, layers = jobs.get_nowait()
                with wire.connect(source.host, source.port, _SOURCE_LAG_S) as sock:
                    sock.settimeout(_SOURCE_LAG_S * 3)
                    for layer in layers:
                        wire.get_into(sock, layer, step, views[layer], token)
                        point("receive")
        except queue.Empty:
            return
        except OSError as error:
            errors.append(error)

    if len(by_source) == 1:
        stream()
    else:
        count = min(_STREAMS, len(by_source))
        threads = [threading.Thread(target=stream, name="fetch", daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return sum(len(views[layer]) for layer, _ in wanted)


class BackupPusher:
    """Sends copies of layers to the backup, one after another, without holding up the step."""

    def __init__(self, backup: Address, token: bytes) -> None:
        self._backup, self._token = backup, token
        self._copies: queue.SimpleQueue[tuple[int, int, torch.Tensor]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="backup-push", daemon=True).start()

    def push(self, layer: int, step: int, buffer: torch.Tensor) -> None:
        """Queue a copy of this layer's state before `step`."""
        self._copies.put((layer, step, buffer.clone()))

    def _run(self) -> None:
        sock: socket.socket | None = None
        while True:
            layer, step, copy = self._copies.get()
            try:
                if sock is None:
                    sock = wire.connect(self._backup.host, self._backup.port, _SOURCE_LAG_S)
                wire.put(sock, layer, step, bytes_of(copy), self._token)
            except OSError:
                # This step's copy stays incomplete on the backup, which then offers an older one.
                if sock is not None:
                    sock.close()
                sock = None
            del copy

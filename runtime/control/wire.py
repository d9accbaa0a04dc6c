"""The byte protocol of state transfer, spoken by workers and by the backup: blobs of one layer at one step.

A request is one fixed header: operation, layer, step, size in bytes, the generation in which it was made, and
the job's 16-byte token. GET is
answered by a size (0: not here) and that many bytes; PUT is followed by the bytes and answered by a 1.
COPY asks for a layer at whatever step it stands, FOLLOW for the gradient that a step was committed with; both
are answered by a size, a step, and that many bytes. GRADIENT is a PUT of the fp32 gradient that was applied
in `step`, after the optimiser's constants.
Plain TCP and no objects: the receiver reads straight into the memory where the state will live.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import NamedTuple

GET, PUT, GRADIENT = 1, 2, 3
COPY, FOLLOW = 16, 17
TOKEN_BYTES = 16
_REQUEST = struct.Struct(f"!BIQQQ{TOKEN_BYTES}s")
_SIZE = struct.Struct("!Q")
_VERSION = struct.Struct("!QQ")
_OPTIMISER = struct.Struct("!5d")
_CHUNK_BYTES = 1 << 22
# A peer that vanishes without a word is noticed after this long: a second more than the agents' heartbeat, so
# that one which is stopped for less, or rests with a full buffer, is not taken for dead.
SILENCE_S = 4
_PROBE_S = 1


class TransferError(ConnectionError):
    """The other side does not have the layer at that step, or went away in the middle."""


@dataclass(frozen=True)
class Request:
    """One request. `size_bytes` is 0 but for a PUT or a GRADIENT, and `generation` matters to them alone."""

    operation: int
    layer: int
    step: int
    size_bytes: int
    generation: int = 0


class AdamW(NamedTuple):
    """Constants of decoupled weight decay Adam (Loshchilov and Hutter, 2019) with bias correction."""

    learning_rate: float
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float


def connect(host: str, port: int, timeout_s: float) -> socket.socket:
    """A connection ready for requests."""
    return _watched(socket.create_connection((host, port), timeout=timeout_s))


def accept(listener: socket.socket) -> socket.socket:
    """The next connection that somebody makes, ready for requests."""
    return _watched(listener.accept()[0])


def _watched(sock: socket.socket) -> socket.socket:
    """With an end to every silence: no answer to probes, or to what was sent, for SILENCE_S breaks it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_NODELAY": 1,
        "TCP_KEEPIDLE": _PROBE_S,
        "TCP_KEEPINTVL": _PROBE_S,
        "TCP_KEEPCNT": SILENCE_S // _PROBE_S - 1,
        "TCP_USER_TIMEOUT": SILENCE_S * 1000,
    }
    for name, value in options.items():
        if hasattr(socket, name):  # not every platform has all
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock


def receive_into(sock: socket.socket, view: memoryview) -> None:
    """Fill `view` from the socket.

    Raises:
        TransferError: the peer closed before that.
    """
    done = 0
    while done < len(view):
        count = sock.recv_into(view[done : done + _CHUNK_BYTES])
        if count == 0:
            raise TransferError(f"the peer closed after {done} of {len(view)} bytes")
        done += count


def send_request(sock: socket.socket, request: Request, token: bytes) -> None:
    """Write the header of a request."""
    numbers = (request.operation, request.layer, request.step, request.size_bytes, request.generation)
    sock.sendall(_REQUEST.pack(*numbers, token))


def receive_request(sock: socket.socket, token: bytes) -> Request | None:
    """The next request, or None when the peer is done.

    Raises:
        TransferError: the token is another job's, or the header breaks off.
    """
    first = sock.recv(1)
    if not first:
        return None
    rest = bytearray(_REQUEST.size - 1)
    receive_into(sock, memoryview(rest))
    operation, layer, step, size_bytes, generation, theirs = _REQUEST.unpack(first + bytes(rest))
    if theirs != token:
        raise TransferError("a request with another job's token")
    if operation not in (GET, PUT, GRADIENT, COPY, FOLLOW):
        raise TransferError(f"a request for operation {operation}")
    return Request(operation, layer, step, size_bytes, generation)


def send_size(sock: socket.socket, size_bytes: int) -> None:
    """Answer with a size; 0 says no."""
    sock.sendall(_SIZE.pack(size_bytes))


def receive_size(sock: socket.socket) -> int:
    """The size that the other side answered."""
    buffer = bytearray(_SIZE.size)
    receive_into(sock, memoryview(buffer))
    return int(_SIZE.unpack(buffer)[0])


def get_into(sock: socket.socket, layer: int, step: int, view: memoryview, token: bytes) -> None:
    """Fetch one layer's state of `step` straight into `view`.

    Raises:
        TransferError: the source does not have it in that size, or went away.
    """
    send_request(sock, Request(GET, layer, step, 0), token)
    size_bytes = receive_size(sock)
    if size_bytes != len(view):
        raise TransferError(f"layer {layer} of step {step}: {size_bytes} bytes offered, {len(view)} needed")
    receive_into(sock, view)


def put(
    sock: socket.socket, layer: int, step: int, view: memoryview, token: bytes, generation: int = 0
) -> None:
    """Store one layer's state of `step` on the other side, and wait until it is there whole."""
    send_request(sock, Request(PUT, layer, step, len(view), generation), token)
    sock.sendall(view)
    expect_taken(sock, layer, step)


def put_gradient(
    sock: socket.socket,
    layer: int,
    step: int,
    optimiser: AdamW,
    view: memoryview,
    token: bytes,
    generation: int = 0,
) -> None:
    """Hand one layer's gradient of `step` to the other side, and wait until it is there whole."""
    send_request(sock, Request(GRADIENT, layer, step, len(view), generation), token)
    sock.sendall(_OPTIMISER.pack(*optimiser))
    sock.sendall(view)
    expect_taken(sock, layer, step)


def receive_optimiser(sock: socket.socket) -> AdamW:
    """What precedes the bytes of a gradient."""
    buffer = bytearray(_OPTIMISER.size)
    receive_into(sock, memoryview(buffer))
    return AdamW(*_OPTIMISER.unpack(buffer))


def expect_taken(sock: socket.socket, layer: int, step: int) -> None:
    """Wait for the other side to say that a PUT has arrived whole.

    Raises:
        TransferError: it says otherwise, or went away.
    """
    if receive_size(sock) != 1:
        raise TransferError(f"layer {layer} of step {step}: the backup refused it")


def send_version(sock: socket.socket, size_bytes: int, step: int) -> None:
    """Answer a COPY with the layer's size and step, a FOLLOW with the size and the source's newest step.

    A size of 0 says no.
    """
    sock.sendall(_VERSION.pack(size_bytes, step))


def receive_version(sock: socket.socket) -> tuple[int, int]:
    """The size and the step that the other side answered."""
    buffer = bytearray(_VERSION.size)
    receive_into(sock, memoryview(buffer))
    size_bytes, step = _VERSION.unpack(buffer)
    return int(size_bytes), int(step)


def closed(sock: socket.socket) -> bool:
    """Whether the other side has gone, as far as can be seen without waiting. It must not be talking."""
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True

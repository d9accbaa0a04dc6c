"""Sending state and gradients to the backup on the anchor, beside the training.

The state of a layer changes in the optimiser only. So a copy is not made when it is asked for: a thread
sends it piece by piece straight from the live memory, and `settle`, called before the optimiser runs, copies
only what has not been sent by then. A gradient is handed over, not copied.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from runtime.control import wire
from runtime.control.wire import AdamW
from runtime.engine.state import bytes_of
from runtime.engine.transfer import Address

_TIMEOUT_S = 10.0
_PIECE_BYTES = 1 << 20
# A state has time: between two pieces the thread rests this many times as long as a piece took, so that it
# takes no more than a quarter of the link and of a core.
_REST = 3.0
# A gradient that has not arrived holds up the next vote for no longer than this.
HOLD_LIMIT_S = 1.0
# Gradients of more steps than this are not kept here: the backup has to be seeded again.
_MOST_STEPS = 2


@dataclass
class _State:
    """A layer's state before `step`: its own `live` memory, or a copy; `ours` is one to be used again."""

    layer: int
    step: int
    buffer: torch.Tensor
    generation: int
    live: bool = True
    ours: bool = False


@dataclass(frozen=True)
class _Gradient:
    """What the optimiser was given in `step`, with its constants of that step."""

    layer: int
    step: int
    gradient: torch.Tensor
    optimiser: AdamW
    generation: int


class BackupSender:
    """One thread and one connection. Nothing here raises: what cannot be sent is missing on the backup."""

    def __init__(
        self, backup: Address, token: bytes, point: Callable[[str], None] = lambda name: None
    ) -> None:
        self._backup, self._token, self._point = backup, token, point
        self._changed = threading.Condition()
        self._states: deque[_State] = deque()
        self._gradients: deque[_Gradient] = deque()
        self._sending: _State | _Gradient | None = None
        self._socket: socket.socket | None = None
        self._piece = bytearray(_PIECE_BYTES)
        self._spare: list[torch.Tensor] = []  # memory of copies that have been sent
        self._moved = False
        self._slow = False  # the last gradients came late: do not wait for them
        self._cost_s = 0.0
        self._generation = 0
        threading.Thread(target=self._run, name="backup-send", daemon=True).start()

    def enter(self, generation: int, pushes: bool = True) -> None:
        """What is sent from now on is of this generation, in which this worker `pushes` states or not."""
        with self._changed:
            self._generation = generation
            if not pushes:
                self._spare.clear()

    def push(self, step: int, buffers: Mapping[int, torch.Tensor]) -> None:
        """Send these layers' states before `step`; what is left of an older push is given up."""
        with self._changed:
            self._spare += [state.buffer for state in self._states if state.ours]
            shapes = {buffer.shape for buffer in buffers.values()}
            self._spare = [memory for memory in self._spare if memory.shape in shapes]
            self._states = deque(
                _State(layer, step, buffer, self._generation) for layer, buffer in buffers.items()
            )
            self._changed.notify_all()

    def stream(self, layer: int, step: int, gradient: torch.Tensor, optimiser: AdamW) -> None:
        """Send the gradient that was applied in `step`; nobody may change it any more."""
        with self._changed:
            if self._gradients and self._gradients[0].step <= step - _MOST_STEPS:
                self._gradients.clear()  # the backup does not keep up; it finds the gap
            self._gradients.append(_Gradient(layer, step, gradient, optimiser, self._generation))
            self._changed.notify_all()

    def settle(self) -> None:
        """The optimiser is about to change the layers: copy what has not been sent yet."""
        began_s = time.monotonic()
        with self._changed:
            current = [self._sending] if isinstance(self._sending, _State) else []
            for state in [*current, *self._states]:
                if state.live:
                    state.buffer, state.live, state.ours = self._copied(state.buffer), False, True
            self._cost_s += time.monotonic() - began_s

    def _copied(self, live: torch.Tensor) -> torch.Tensor:
        """A copy, in memory of an earlier one where it fits: fresh pages would cost more than the copy."""
        for number, memory in enumerate(self._spare):
            if memory.shape == live.shape:
                return self._spare.pop(number).copy_(live)
        return live.clone()

    def hold(self, over: Callable[[], bool]) -> None:
        """Wait until the gradients have arrived, for at most HOLD_LIMIT_S, or until the generation is `over`.

        So whoever votes for a step knows that the backup has the step before it.
        """
        began_s = time.monotonic()
        with self._changed:
            done = self._changed.wait_for(
                lambda: over() or not self._gradients_left(),
                0.0 if self._slow else HOLD_LIMIT_S,
            )
            self._slow = not done
            self._cost_s += time.monotonic() - began_s

    def wake(self) -> None:
        """The generation is over: look again."""
        with self._changed:
            self._changed.notify_all()

    def clear(self) -> None:
        """The job goes back to an earlier step: what has not been sent is no longer true."""
        with self._changed:
            self._states.clear()
            self._gradients.clear()
            self._changed.notify_all()

    def move_to(self, backup: Address) -> None:
        """The backup is somewhere else now."""
        with self._changed:
            self._backup, self._moved = backup, True

    def take_cost_s(self) -> float:
        """Seconds since the last call: those that training was held up, and those of the processor."""
        with self._changed:
            cost_s, self._cost_s = self._cost_s, 0.0
        return cost_s

    def _gradients_left(self) -> bool:
        return bool(self._gradients) or isinstance(self._sending, _Gradient)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._sending = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._gradients or self._states)
                self._sending = job = (self._gradients or self._states).popleft()
            began_s = time.thread_time()
            # An old connection may lead to a backup that has died; a new one leads to its successor.
            if self._moved or self._socket is None or not self._send(job):
                self._moved = False
                self._disconnect()
                if not self._send(job):
                    self._disconnect()
                    self.clear()  # without this one the others are of no use
            with self._changed:
                if isinstance(job, _State) and job.ours:
                    self._spare.append(job.buffer)
                del job
                self._cost_s += time.thread_time() - began_s

    def _send(self, job: _State | _Gradient) -> bool:
        try:
            if self._socket is None:
                self._socket = wire.connect(self._backup.host, self._backup.port, _TIMEOUT_S)
            if isinstance(job, _Gradient):
                gradient = bytes_of(job.gradient)
                wire.put_gradient(
                    self._socket, job.layer, job.step, job.optimiser, gradient, self._token, job.generation
                )
            else:
                self._send_state(self._socket, job)
        except OSError:
            return False
        return True

    def _disconnect(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
        self._socket = None

    def _send_state(self, sock: socket.socket, job: _State) -> None:
        size_bytes = job.buffer.numel() * job.buffer.element_size()
        request = wire.Request(wire.PUT, job.layer, job.step, size_bytes, job.generation)
        wire.send_request(sock, request, self._token)
        piece = memoryview(self._piece)
        done = 0
        while done < size_bytes:
            began_s = time.monotonic()
            with self._changed:
                if job.live and job.buffer.device.type != "cpu":
                    job.buffer, job.live = job.buffer.cpu(), False
                view = bytes_of(job.buffer)[done : done + _PIECE_BYTES]
                piece[: len(view)] = view
            half = len(view) // 2
            sock.sendall(piece[:half])
            self._point("push")
            sock.sendall(piece[half : len(view)])
            done += len(view)
            with self._changed:
                if not self._gradients:
                    # Whoever brings a gradient ends the rest.
                    rest_s = _REST * (time.monotonic() - began_s)
                    self._changed.wait_for(lambda: bool(self._gradients), rest_s)
        wire.expect_taken(sock, job.layer, job.step)

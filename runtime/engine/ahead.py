"""Copying layers ahead: a prepared generation's state comes while the one before it trains.

Each layer is copied whole, at the step where its source stands, and then follows its source: the gradient
that a step is committed with is all that its update depends on, so the same update gives the same bits here.
It is a third of the state. At the switch only the last step's gradients are still to come.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from runtime.control import wire
from runtime.engine.state import LayerState, bytes_of
from runtime.engine.transfer import Address, split_streams

_CONNECT_S = 10.0
_TAKE_S = 60.0
_CHUNK_BYTES = 1 << 20


@dataclass
class _Shadow:
    """A layer on its way; `step` is -1 while it is not whole, or is being changed."""

    layer: LayerState
    step: int = -1


class AheadCopy:
    """The layers that one worker copies for one generation. It begins at once, in threads of its own."""

    def __init__(
        self,
        generation: int,
        wanted: Mapping[int, Address],
        token: bytes,
        new_layer: Callable[[int], LayerState],
        replay: Callable[[LayerState, int, torch.Tensor], None],
        point: Callable[[str], None],
        on_copied: Callable[[int, float], None],
    ) -> None:
        """`new_layer` gives a layer's memory, `replay` brings it forward by a step.

        `on_copied` is called once, with the bytes and seconds that it took, when every layer is here and
        stands where its source stands.
        """
        self.generation = generation
        self._wanted, self._token = dict(wanted), token
        self._new_layer, self._replay, self._point = new_layer, replay, point
        self._on_copied = on_copied
        self._changed = threading.Condition()
        self._shadows: dict[int, _Shadow] = {}
        self._given_up: set[int] = set()
        self._sockets: list[socket.socket] = []
        self._stopped = False
        self._copied_s = 0.0
        self._hurry = threading.Event()
        self._newest = 0
        self._bytes = 0
        self._began_s = time.monotonic()
        threading.Thread(target=self._begin, name="copy-ahead", daemon=True).start()

    @property
    def bytes_moved(self) -> int:
        """What has come so far."""
        return self._bytes

    @property
    def copied_s(self) -> float:
        """How long it took until every layer was here; 0 if they never were."""
        return self._copied_s

    def take(self, step: int) -> dict[int, LayerState]:
        """End the copy and get the layers that stand before `step`; waits for what is on its way.

        A layer is missing from the result if its source went away or stands elsewhere.
        """

        def settled() -> bool:
            here = all(
                layer in self._given_up or (layer in self._shadows and self._shadows[layer].step == step)
                for layer in self._wanted
            )
            return self._stopped or here

        self.hurry()
        with self._changed:
            self._changed.wait_for(settled, timeout=_TAKE_S)
        self.stop()
        with self._changed:
            return {index: shadow.layer for index, shadow in self._shadows.items() if shadow.step == step}

    def hurry(self) -> None:
        """The switch is next: do not rest any more."""
        self._hurry.set()

    def rescue(self) -> tuple[int, dict[int, LayerState]]:
        """End the copy and get what is whole of the newest step that came, and that step."""
        self.stop()
        with self._changed:
            newest = max((shadow.step for shadow in self._shadows.values()), default=-1)
            whole = {index: s.layer for index, s in self._shadows.items() if s.step == newest >= 0}
        return newest, whole

    def stop(self) -> None:
        """End the copy. No layer is touched any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # wakes whoever waits in it
        self._hurry.set()

    # ---- in threads of their own -----------------------------------------------------------------------

    def _begin(self) -> None:
        # One thread: elementwise kernels give the same bits only if they are split in the same way.
        torch.set_num_threads(1)
        by_source: dict[Address, dict[int, int]] = defaultdict(dict)
        for index, source in self._wanted.items():
            try:
                layer = self._new_layer(index)
            except RuntimeError:  # there is no memory for both generations: it is fetched at the switch
                with self._changed:
                    self._given_up.update(self._wanted)
                return
            by_source[source][index] = layer.buffer.nbytes
            with self._changed:
                self._shadows[index] = _Shadow(layer)
        streams = [(source, part) for source, sizes in by_source.items() for part in split_streams(sizes)]
        for source, part in streams[1:]:
            threading.Thread(target=self._stream, args=(source, part), name="copy-ahead", daemon=True).start()
        self._stream(*streams[0])

    def _stream(self, source: Address, layers: list[int]) -> None:
        torch.set_num_threads(1)
        try:
            with wire.connect(source.host, source.port, _CONNECT_S) as sock:
                with self._changed:
                    if self._stopped:
                        return
                    self._sockets.append(sock)
                sock.settimeout(None)  # a gradient comes when its step is committed; `stop` ends the wait
                scratch = torch.empty(max(self._shadows[layer].layer.size for layer in layers))
                at = {layer: self._copy(sock, layer) for layer in layers}
                while True:
                    # Whoever is farthest behind: another would wait for a commit, which may not come before
                    # this one is where a switch needs it.
                    layer = min(layers, key=lambda index: at[index])
                    at[layer] = self._follow(sock, layer, at[layer], scratch)
        except OSError:
            with self._changed:
                self._given_up.update(layers)
                self._changed.notify_all()
            self._tell_when_copied()

    def _copy(self, sock: socket.socket, index: int) -> int:
        layer = self._shadows[index].layer
        self._begin_change(index)
        wire.send_request(sock, wire.Request(wire.COPY, index, 0, 0), self._token)
        size_bytes, step = wire.receive_version(sock)
        view = layer.incoming()
        if size_bytes != len(view):
            raise wire.TransferError(f"layer {index}: {size_bytes} bytes offered, {len(view)} needed")
        half = len(view) // 2
        self._receive(sock, view[:half])
        self._point("copy")
        self._receive(sock, view[half:])
        layer.arrived()
        self._end_change(index, step, step)
        return step

    def _follow(self, sock: socket.socket, index: int, step: int, scratch: torch.Tensor) -> int:
        """Bring a layer forward by one step, as soon as its source has committed it."""
        layer = self._shadows[index].layer
        wire.send_request(sock, wire.Request(wire.FOLLOW, index, step, 0), self._token)
        size_bytes, newest = wire.receive_version(sock)
        if not size_bytes:
            return self._copy(sock, index)  # too far behind: the gradient is not there any more
        gradient = scratch[: layer.size]
        view = bytes_of(gradient)
        if size_bytes != len(view):
            raise wire.TransferError(f"gradient {index}: {size_bytes} bytes offered, {len(view)} needed")
        self._receive(sock, view)
        self._begin_change(index)
        self._point("replay")
        self._replay(layer, step, gradient)
        self._end_change(index, step + 1, newest)
        return step + 1

    def _receive(self, sock: socket.socket, view: memoryview) -> None:
        """Fill `view`, resting as long as it receives: the step in flight needs link and cores too."""
        for start in range(0, len(view), _CHUNK_BYTES):
            began_s = time.monotonic()
            wire.receive_into(sock, view[start : start + _CHUNK_BYTES])
            if not self._hurry.is_set():
                self._hurry.wait(time.monotonic() - began_s)
        with self._changed:
            self._bytes += len(view)

    def _begin_change(self, index: int) -> None:
        with self._changed:
            if self._stopped:
                raise wire.TransferError("the copy was ended")
            self._shadows[index].step = -1

    def _end_change(self, index: int, step: int, newest: int) -> None:
        with self._changed:
            self._shadows[index].step = step
            self._newest = max(self._newest, newest)
            self._changed.notify_all()
        self._tell_when_copied()

    def _tell_when_copied(self) -> None:
        with self._changed:
            here = len(self._shadows) == len(self._wanted) and all(
                index in self._given_up or shadow.step >= self._newest
                for index, shadow in self._shadows.items()
            )
            if self._stopped or self._copied_s or not here:
                return
            self._copied_s = time.monotonic() - self._began_s
        self._on_copied(self._bytes, self._copied_s)

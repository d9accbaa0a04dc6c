"""What the backup holds: copies of the state that were pushed, or one state that gradients bring forward.

Raw bytes, layer by layer; nothing of torch. A step counts once every layer of it is here, whole.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

from runtime.control.backup import adamw
from runtime.control.wire import AdamW

# Gradients of so many steps are kept while the state that they belong to is still arriving.
MOST_AHEAD = 8
# How long the steps that have arrived may take to be applied before a rollback.
_APPLY_S = 10.0


class Store(Protocol):
    """What the backup's server needs. Every method may be called from any thread."""

    changed: threading.Condition

    def latest(self) -> int | None:
        """The newest step of which every layer is here, or None."""

    @property
    def needs_state(self) -> bool:
        """Whether a state must be pushed before anything newer can come of what is streamed."""

    @property
    def size_bytes(self) -> int:
        """Memory held."""

    def put(self, step: int, layer: int, blob: bytearray, generation: int = 0) -> None:
        """A layer's state before `step`, sent in this generation."""

    def gradient(self, step: int, layer: int, optimiser: AdamW, blob: bytearray, generation: int = 0) -> None:
        """What a layer's optimiser was given in `step`, sent in this generation."""

    def get(self, step: int, layer: int) -> bytes | bytearray | None:
        """A layer's state before exactly `step`."""

    def copy(self) -> tuple[int, Mapping[int, bytes | bytearray]] | None:
        """The newest whole state, which nobody changes any more, and its step."""

    def expect(self, step: int) -> None:
        """The state before `step` is about to be pushed."""

    def go_back(self, generation: int) -> int | None:
        """The job goes back to the newest whole step, which is returned, and on from there in `generation`.

        What still comes of earlier generations is not taken: it belongs to steps that are done again.
        """

    def close(self) -> None:
        """End what runs beside."""


class PushedCopies:
    """The last `keep` whole copies, and the one that is arriving: `keep` + 1 times the state at most."""

    needs_state = False

    def __init__(self, layers: int, floor: int = 0, keep: int = 2) -> None:
        self.changed = threading.Condition()
        self._layers, self._keep, self._floor = layers, keep, floor
        self._copies: dict[int, dict[int, bytearray]] = {}  # step -> layer -> bytes
        self._forgotten_until = -1  # what comes of a step up to this one comes too late

    def latest(self) -> int | None:
        """See Store."""
        with self.changed:
            return max(self._complete(), default=None)

    @property
    def size_bytes(self) -> int:
        """See Store."""
        with self.changed:
            return sum(len(blob) for copy in self._copies.values() for blob in copy.values())

    def put(self, step: int, layer: int, blob: bytearray, generation: int = 0) -> None:
        """See Store."""
        with self.changed:
            if generation < self._floor or step <= self._forgotten_until:
                return
            self._copies.setdefault(step, {})[layer] = blob
            complete = self._complete()
            if len(complete) >= self._keep:
                oldest = complete[-self._keep]
                self._forgotten_until = oldest - 1
                for late in [s for s in self._copies if s < oldest]:
                    del self._copies[late]
            self.changed.notify_all()

    def gradient(self, step: int, layer: int, optimiser: AdamW, blob: bytearray, generation: int = 0) -> None:
        """Not kept: states are pushed."""

    def get(self, step: int, layer: int) -> bytes | bytearray | None:
        """See Store."""
        with self.changed:
            return self._copies.get(step, {}).get(layer)

    def copy(self) -> tuple[int, Mapping[int, bytes | bytearray]] | None:
        """See Store. Pushed copies never change."""
        with self.changed:
            step = max(self._complete(), default=None)
            return None if step is None else (step, dict(self._copies[step]))

    def expect(self, step: int) -> None:
        """Nothing to prepare."""

    def go_back(self, generation: int) -> int | None:
        """See Store."""
        with self.changed:
            self._floor = generation
            step = max(self._complete(), default=None)
            for later in [s for s in self._copies if s > (step or 0)]:
                del self._copies[later]
            return step

    def restore(self, step: int, layers: Mapping[int, bytes | bytearray], generation: int) -> None:
        """Hold this state and nothing else, no layers: nothing; and go on in `generation`."""
        with self.changed:
            self._floor = generation
            self._copies = {step: {n: bytearray(blob) for n, blob in layers.items()}} if layers else {}
            self._forgotten_until = step - 1
            self.changed.notify_all()

    def close(self) -> None:
        """Nothing runs beside."""

    def _complete(self) -> list[int]:
        return sorted(step for step, copy in self._copies.items() if len(copy) == self._layers)


class FollowedState:
    """One state, brought forward in place by the gradients of each step once all of them are here.

    A worker votes for a step when its gradients of the step before have arrived. So a gradient of a later
    step than the one that is due shows a gap (its sender died): the state stays where it is, good to go back
    to, until a newer one has been pushed whole. At most two states and the gradients of MOST_AHEAD steps are
    held.
    """

    def __init__(self, layers: int, floor: int = 0) -> None:
        self.changed = threading.Condition()
        self._floor = floor
        self._in_place = threading.Lock()  # held while the state changes, or while it must not
        self._layers = layers
        self._step: int | None = None
        self._due = 0  # the gradient that is waited for: of this step, or of the next while one is applied
        self._state: dict[int, bytearray] = {}
        self._arriving_step = -1
        self._arriving: dict[int, bytearray] = {}
        self._gradients: dict[int, dict[int, tuple[AdamW, bytearray]]] = {}
        self._gap = self._closed = False
        threading.Thread(target=self._run, name="backup-apply", daemon=True).start()

    def latest(self) -> int | None:
        """See Store."""
        with self.changed:
            return self._step

    @property
    def needs_state(self) -> bool:
        """See Store."""
        with self.changed:
            return self._gap or self._step is None

    @property
    def size_bytes(self) -> int:
        """See Store."""
        with self.changed:
            states = sum(len(blob) for layers in (self._state, self._arriving) for blob in layers.values())
            return states + sum(len(blob) for g in self._gradients.values() for _, blob in g.values())

    def expect(self, step: int) -> None:
        """See Store."""
        with self.changed:
            self._arriving_step, self._arriving = step, {}

    def put(self, step: int, layer: int, blob: bytearray, generation: int = 0) -> None:
        """See Store."""
        with self._in_place, self.changed:
            if generation < self._floor or step < self._arriving_step or step <= (self._step or -1):
                return
            if step > self._arriving_step:
                self._arriving_step, self._arriving = step, {}
            self._arriving[layer] = blob
            if len(self._arriving) == self._layers:
                self._state, self._arriving = self._arriving, {}
                self._step = self._due = step
                self._arriving_step = -1
                self._gap = False
                for late in [s for s in self._gradients if s < step]:
                    del self._gradients[late]
                self._look_for_gap()
            self.changed.notify_all()

    def gradient(self, step: int, layer: int, optimiser: AdamW, blob: bytearray, generation: int = 0) -> None:
        """See Store."""
        with self.changed:
            useless = self._gap or self._step is None
            first = self._arriving_step if useless else self._due
            if generation < self._floor or step < first or (useless and first < 0):
                return
            self._gradients.setdefault(step, {})[layer] = optimiser, blob
            self._look_for_gap()
            self.changed.notify_all()

    def get(self, step: int, layer: int) -> bytes | bytearray | None:
        """See Store. The state may go on while it is sent, but not before all who go back to it vote."""
        with self._in_place, self.changed:
            return self._state.get(layer) if step == self._step else None

    def copy(self) -> tuple[int, Mapping[int, bytes | bytearray]] | None:
        """See Store."""
        with self._in_place:
            if self._step is None:
                return None
            return self._step, {layer: bytes(blob) for layer, blob in self._state.items()}

    def go_back(self, generation: int) -> int | None:
        """See Store. What has arrived whole still counts, and the state is exactly where the job is then."""
        with self.changed:
            self.changed.wait_for(lambda: not self._ready(), _APPLY_S)
        with self._in_place, self.changed:
            self._floor, self._gap = generation, False
            self._gradients.clear()
            self._arriving_step, self._arriving = -1, {}
            self.changed.notify_all()
            return self._step

    def close(self) -> None:
        """See Store."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()

    def _look_for_gap(self) -> None:
        newest = max(self._gradients, default=-1)
        if self._step is not None and newest > self._due:
            self._gap = self._gap or len(self._gradients.get(self._due, {})) < self._layers
        if len(self._gradients) > MOST_AHEAD or (self._gap and self._arriving_step < 0):
            self._gap = self._step is not None
            self._gradients.clear()

    def _ready(self) -> bool:
        if self._step is None or self._gap:
            return False
        return len(self._gradients.get(self._step, {})) == self._layers

    def _run(self) -> None:
        import numpy as np

        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._closed or self._ready())
                if self._closed:
                    return
            with self._in_place:
                with self.changed:
                    if not self._ready():
                        continue
                    assert self._step is not None
                    step = self._step
                    gradients = self._gradients.pop(step)
                    self._due = step + 1
                for layer, (optimiser, blob) in gradients.items():
                    rows = np.frombuffer(self._state[layer], np.float32).reshape(3, -1)
                    adamw.apply(rows, np.frombuffer(blob, np.float32), step, optimiser)
                with self.changed:
                    self._step = step + 1
                    self.changed.notify_all()

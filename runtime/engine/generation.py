"""One generation as a worker sees it: its position, its groups, and the thread that waits in them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from runtime.control.messages import Prepare
from runtime.engine.groups import GlooGroups, Groups
from runtime.engine.nccl_groups import NcclGroups
from runtime.engine.waits import Waiter


def compute_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


class Generation:
    """The groups are built in the background as soon as this exists; `groups()` waits for them.

    So is the memory for gradients, by `make_room`; `prepared` is called with the seconds that both took.

    `stage` is the rank in the pipeline of `stages` workers. With redundancy a worker may have two of the
    model's stages, `works[stage]`, and keeps copies of others, `shadows[stage]`.
    """

    def __init__(
        self,
        message: Prepare,
        host: str,
        prepared: Callable[[float], None],
        make_room: Callable[[Generation], list[torch.Tensor]] = lambda generation: [],
    ) -> None:
        self.number = message.generation
        self.pipelines = message.pipelines
        self.pipeline, position = message.position
        # Ordinarily a worker has one stage and its rank in the pipeline is the stage's number.
        self.works = message.works or [[stage] for stage in range(len(message.cuts))]
        self.shadows = message.shadows or [[] for _ in self.works]
        self.stage = next(rank for rank, stages in enumerate(self.works) if position in stages)
        self.stages = len(self.works)
        self.cuts = message.cuts
        self.layers: Sequence[int] = [n for stage in self.works[self.stage] for n in message.cuts[stage]]
        self.shadow_layers = [n for stage in self.shadows[self.stage] for n in message.cuts[stage]]
        self.held: Sequence[int] = [*self.layers, *self.shadow_layers]
        own = (*self.works[self.stage], *self.shadows[self.stage])
        self.own_stages: dict[int, Sequence[int]] = {stage: message.cuts[stage] for stage in own}
        self.gradients: dict[int, torch.Tensor] = {}  # flat, of each of `own_stages`
        self.keep_alive: object = None  # what the network may still read or write
        self.fresh = True  # no step of it has been committed yet
        self.waiter = Waiter(f"generation-{self.number}")
        self._groups: Groups | None = None
        self._room: list[torch.Tensor] = []
        self._message, self._host = message, host
        # What is called is not kept: it holds the generation before this one, which held the one before it.
        self.waiter.post(partial(self._build, prepared, make_room))

    def groups(self) -> Groups:
        """The generation's groups, once every member has joined them."""
        if self._groups is None:
            self._groups, self._room = self.waiter.collect()
        assert self._groups is not None
        return self._groups

    def take_room(self) -> list[torch.Tensor]:
        """The memory that was found ahead, once."""
        room, self._room = self._room, []
        return room

    def micro_batches(self, count: int) -> list[int]:
        """Which of `count` micro-batches this pipeline works on; D need not divide `count`."""
        return [k for k in range(count) if k * self.pipelines // count == self.pipeline]

    def abandon(self) -> None:
        """The generation was aborted: wake whoever waits in it, and let go of dead peers where one can."""
        self.waiter.abandon()
        if self._groups is not None:
            self._groups.abort()

    def free(self) -> None:
        """Let go of the groups. Their destructors can take tens of milliseconds."""
        self._groups = None
        self.keep_alive = None
        self.gradients = {}

    def _build(
        self, prepared: Callable[[float], None], make_room: Callable[[Generation], list[torch.Tensor]]
    ) -> tuple[Groups, list[torch.Tensor]]:
        began = time.monotonic()
        message = self._message
        store = (message.store[0], message.store[1])
        position = (self.pipeline, self.stage)
        device = compute_device()
        groups: Groups
        if device.type == "cuda":
            groups = NcclGroups(self.number, device, store, self.pipelines, self.stages, position)
        else:
            works = self.works[self.stage]
            groups = GlooGroups(self.number, self._host, store, self.pipelines, self.stages, position, works)
        room = make_room(self)
        prepared(time.monotonic() - began)
        return groups, room


class Graveyard:
    """Frees generations that are over, once the call that their thread was left in has ended."""

    _PERIOD_S = 0.5

    def __init__(self) -> None:
        self._dead: list[Generation] = []
        self._lock = threading.Lock()
        self._work = threading.Event()
        threading.Thread(target=self._run, name="graveyard", daemon=True).start()

    def bury(self, generation: Generation) -> None:
        """The generation is over; free it as soon as possible, off the critical path."""
        generation.waiter.abandon()
        with self._lock:
            self._dead.append(generation)
        self._work.set()

    def _run(self) -> None:
        while self._work.wait():
            time.sleep(self._PERIOD_S)
            with self._lock:
                finished = [g for g in self._dead if g.waiter.finished]
                self._dead = [g for g in self._dead if not g.waiter.finished]
                if not self._dead:
                    self._work.clear()
            for generation in finished:
                generation.free()
            del finished

"""`--policy checkpoint`: the job stops at every change of its members and goes on from the disk.

What a user of an elastic launcher does: every process ends, a new one starts on each node, and all of them
load the last durable checkpoint. Where the change is foreseen (a notice, a node that came) a checkpoint is
written first; after a loss the steps since the last one are done again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from runtime.control.backup.orders import BackupOrders
from runtime.control.backup.process import BackupPort
from runtime.control.training.coordinator import Coordinator
from runtime.control.training.phases import Phase, StartGate
from runtime.planning import types as plan_types
from runtime.planning.saving import save_is_due

# How often to look whether the checkpoint that a stop waits for is on the disk.
_LOOK_S = 0.01
# A checkpoint that is not on the disk after so long is asked for again.
_LONGEST_SAVE_S = 60.0


class SaveOrders(BackupOrders):
    """When the state is sent off to be written: every `every` steps, or by Young's rule if that is 0.

    `durable` is the newest step on the disk. Training goes on while the state is sent and written.
    """

    def __init__(
        self, every: int, durable: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__("state", every)
        self._durable, self._clock = durable, clock
        self._began_s = self._saved_s = clock()
        self._write_s = 0.0
        self._on_its_way: tuple[int, float] | None = None  # which step, since when
        self._stop = False
        self.losses = 0
        self.halted: int | None = None  # training stands before this step until it is on the disk

    def stop(self) -> None:
        """Let the next commit be the last one, and save it."""
        self._stop = True

    def at(self, steps: int, last: bool, fresh: bool, backup: BackupPort) -> tuple[bool, bool]:
        """See BackupOrders."""
        now_s = self._clock()
        if self._on_its_way is not None:
            step, since_s = self._on_its_way
            if self._durable() >= step:
                self._write_s, self._saved_s, self._on_its_way = now_s - since_s, since_s, None
            elif now_s - since_s > _LONGEST_SAVE_S:
                self._on_its_way = None
        elapsed_s, since_s = now_s - self._began_s, now_s - self._saved_s
        due = self._on_its_way is None and save_is_due(
            steps - self._durable(), since_s, self._every, self._write_s, elapsed_s, self.losses
        )
        if self._stop and not last:
            self.halted = steps
        push = last or due or self._stop
        if push:
            self._on_its_way = (steps, now_s)
            backup.expect(steps)
        return push, False

    def reset(self) -> None:
        """A new generation, of new processes: what the old ones had sent off may not arrive."""
        self._on_its_way, self._stop, self.halted = None, False, None

    @property
    def halts(self) -> bool:
        """Whether training is to stand still after this commit."""
        return self.halted is not None


class RestartingCoordinator(Coordinator):
    """Restarts where another coordinator migrates; votes, the commit point and the ledger are the same."""

    _orders: SaveOrders

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._orders = SaveOrders(self._training.checkpoint_every, lambda: self._keeper.durable)
        self._saving: asyncio.Task[None] | None = None

    def _carry_out(self, command: plan_types.Command) -> None:
        if not isinstance(command, plan_types.Restart):
            super()._carry_out(command)
        elif self._course.phase is Phase.RUNNING:
            # Save, stop, start without those that go, with those that came.
            self._orders.stop()

    def _commit(self) -> None:
        super()._commit()
        if self._orders.halted is not None and self._saving is None:
            self._saving = asyncio.get_running_loop().create_task(self._restart_when_saved())

    async def _restart_when_saved(self) -> None:
        step = self._orders.halted
        while self._course.phase is Phase.RUNNING and step is not None and self._orders.halted == step:
            self._keeper.tick()
            if self._keeper.durable >= step:
                self._restart(f"a change is due, and step {step} is saved")
                break
            await asyncio.sleep(_LOOK_S)
        self._saving = None

    def _recover(self) -> None:
        """Somebody died, or a step failed: nothing of what is in memory is used again."""
        self._course.ledger = self._course.ledger.abandon()
        self._orders.losses += 1
        self._restart("a step was abandoned")

    def _lose(self, node: str, why: str) -> None:
        if node not in self._roster or not self._roster.restarting(node):
            super()._lose(node, why)
        elif self._roster.lose(node):  # as it was told to
            self._course.planning.append(plan_types.NodeLost(node))

    def _restart(self, why: str) -> None:
        """End every worker; their agents start new ones, which are waited for before the next layout."""
        self._orders.reset()
        self._course.wait()
        self._recovery.forget()
        self._gate = StartGate()
        self._course.planning += [plan_types.TrainingStopped(), plan_types.StateReported({})]
        workers = sorted(self._roster.ready)
        self._roster.restart(workers)
        self._recorder.event("restart", f"every process starts anew: {len(workers)} workers", why)
        for node in workers:
            self._fleet.kill_worker(node)

    def _newest_state(self, generation: int) -> tuple[int, str]:
        step = self._keeper.reload(generation)
        return step, "the last checkpoint" if step else "no checkpoint was on the disk yet"

"""Decides when the backup's state is written as a durable checkpoint, and has it done beside the training."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from cloud.provider import CloudError
from runtime.control.backup.checkpoint_target import target_of
from runtime.control.backup.process import BackupStatus
from runtime.planning.errors import InputError

# How long the last state may take to reach the backup after the last step.
LAST_COPY_TIMEOUT_S = 60.0


class Writer(Protocol):
    """The backup, which writes what it holds."""

    @property
    def status(self) -> BackupStatus:
        """As last heard."""

    def wait_for(self, step: int, timeout_s: float) -> bool:
        """Whether the state of `step`, or of a later one, is whole before `timeout_s` is over."""

    def write(
        self, target: str, seed: int, template: Mapping[str, Any], parameters: Sequence[Sequence[Any]]
    ) -> tuple[int, str] | None:
        """Write the newest state; its step and where it is."""

    def restore(self, target: str | None, generation: int) -> int:
        """Hold nothing but the checkpoint at `target`; its step, 0 without one."""


class CheckpointKeeper:
    """Has a checkpoint written once `every` more steps have reached the backup, one at a time.

    With no `target` it does nothing. The last `keep` of those that this job wrote are kept; others in the
    same place are left alone. `say` is told of every checkpoint, and of a failure to write one, which does
    not stop the training.
    """

    def __init__(
        self,
        target: str | None,
        every: int,
        keep: int,
        seed: int,
        template: Mapping[str, Any],
        backup: Writer,
        say: Callable[[str, str], None],
    ) -> None:
        self._target, self._every, self._keep = target, every, keep
        self._seed, self._template, self._backup = seed, template, backup
        self._say = say
        self._parameters: Sequence[Sequence[Any]] = ()
        self._written: list[int] = []
        self._last = 0
        self._failed = 0
        self._start: str | None = None
        self._task: asyncio.Task[None] | None = None

    def learn(self, parameters: Sequence[Sequence[Any]]) -> None:
        """The names and shapes of the model's tensors: [layer, name, shape] in the order of their place."""
        self._parameters = self._parameters or parameters

    def start_from(self, step: int, place: str | None = None) -> None:
        """The job continues a checkpoint of this step, which need not be written again."""
        self._last, self._start = step, place

    @property
    def durable(self) -> int:
        """The step of the last checkpoint that is whole, or that the job began with; 0 if there is none."""
        return self._last

    def reload(self, generation: int) -> int:
        """Have the backup hold the last checkpoint, read from where it was written; its step, 0 without one.

        The job goes on from there in `generation`.

        Raises:
            OSError: it cannot be read any more.
        """
        self._failed = 0  # its step comes again, and others before it
        if self._last in self._written:
            return self._backup.restore(f"{self._target}/step-{self._last}", generation)
        return self._backup.restore(self._start if self._last else None, generation)

    def tick(self) -> None:
        """Look whether a checkpoint is due; returns at once."""
        if self._target is None or (self._task is not None and not self._task.done()):
            return
        if (self._backup.status.latest or 0) // self._every > max(self._last, self._failed) // self._every:
            self._task = asyncio.create_task(self._write())

    @property
    def wanted(self) -> bool:
        """Whether checkpoints are kept at all."""
        return self._target is not None

    async def collect(self, step: int, timeout_s: float = LAST_COPY_TIMEOUT_S) -> None:
        """Training is over at `step`: wait until its state has come from the nodes."""
        if self._target is not None and self._parameters:
            await asyncio.to_thread(self._backup.wait_for, step, timeout_s)

    async def finish(self) -> None:
        """Write the newest state that there is; nodes are not needed for it."""
        if self._target is None or not self._parameters:
            return
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if (self._backup.status.latest or 0) > self._last:
            await self._write()

    async def _write(self) -> None:
        assert self._target is not None
        step = self._backup.status.latest or 0
        try:
            found = await asyncio.to_thread(
                self._backup.write, self._target, self._seed, self._template, self._parameters
            )
        except OSError as error:
            self._say("trouble", f"the checkpoint of step {step} could not be written: {error}")
            self._failed = step  # not again before the next one is due
            return
        if found is None:
            return  # a new backup has no state yet
        self._last, place = found
        self._say("checkpoint", f"step {self._last} is safe in {place}")
        if self._last not in self._written:
            self._written.append(self._last)
        await asyncio.to_thread(self._prune)

    def _prune(self) -> None:
        assert self._target is not None
        while len(self._written) > self._keep:
            with contextlib.suppress(OSError, InputError, CloudError):
                target_of(self._target).remove(self._written[0])
            del self._written[0]

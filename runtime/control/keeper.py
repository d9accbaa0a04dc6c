"""Decides when the backup's copy is written to disk as a checkpoint, and does it beside the training."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.control import checkpoint
from runtime.control.backup import Backup

# How long the last copy may take to reach the backup after the last step.
LAST_COPY_TIMEOUT_S = 60.0


class CheckpointKeeper:
    """Writes a checkpoint once `every` more steps have reached the backup, one at a time.

    With no `folder` it does nothing. `say` is told of every checkpoint, and of a failure to write one, which
    does not stop the training.
    """

    def __init__(
        self,
        folder: Path | None,
        every: int,
        seed: int,
        template: Mapping[str, Any],
        backup: Backup,
        say: Callable[[str, str], None],
    ) -> None:
        self._folder, self._every = folder, every
        self._seed, self._template, self._backup = seed, template, backup
        self._say = say
        self._parameters: Sequence[checkpoint.Parameter] = ()
        self._written = 0
        self._task: asyncio.Task[None] | None = None

    def learn(self, parameters: Sequence[Sequence[Any]]) -> None:
        """The names and shapes of the model's tensors: [layer, name, shape] in the order of their place."""
        if not self._parameters:
            self._parameters = [checkpoint.Parameter(p[0], p[1], tuple(p[2])) for p in parameters]

    def start_from(self, step: int) -> None:
        """The job continues a checkpoint of this step, which need not be written again."""
        self._written = step

    def tick(self) -> None:
        """Look whether a checkpoint is due; returns at once."""
        if self._folder is None or (self._task is not None and not self._task.done()):
            return
        step = self._backup.latest() or 0
        if step // self._every > self._written // self._every:
            self._task = asyncio.create_task(self._write(step))

    async def finish(self, step: int) -> None:
        """Training is over at `step`: write the last state that can be had."""
        if self._folder is None or not self._parameters:
            return
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await asyncio.to_thread(self._backup.wait_for, step, LAST_COPY_TIMEOUT_S)
        latest = self._backup.latest() or 0
        if latest > self._written:
            await self._write(latest)

    async def _write(self, step: int) -> None:
        assert self._folder is not None
        copy = self._backup.copy(step)
        if copy is None:
            return  # a newer copy has replaced it meanwhile: the next look finds that one
        try:
            path = await asyncio.to_thread(
                checkpoint.write, self._folder, step, self._seed, self._template, self._parameters, copy
            )
        except OSError as error:
            self._say("trouble", f"the checkpoint of step {step} could not be written: {error}")
            return
        self._written = step
        self._say("checkpoint", f"step {step} is safe in {path}")

"""A bar on stderr for replays that take a while."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class ReplayProgress:
    """A bar for each policy (or for all replays of a sweep): after a second only, and only on a terminal."""

    AFTER_S = 1.0

    def __init__(self) -> None:
        self._since_s = time.monotonic()
        self._shown = sys.stderr.isatty()
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ReplayProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, what: str, share: float) -> None:
        """`share` of `what` is done, 0 to 1."""
        if not self._shown or time.monotonic() - self._since_s < self.AFTER_S:
            return
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            from parcae_cli.render.output import text_console

            self._bar = Progress(
                TextColumn("{task.description:>16}"),
                BarColumn(),
                TaskProgressColumn(),
                console=text_console(stderr=True),
                transient=True,
            )
            self._bar.start()
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=1.0)
        self._bar.update(self._tasks[what], completed=share)

"""What a person sees of the backup: how it stands, what it costs, and that it was lost and replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime.control.backup.process import BackupStatus


class BackupView:
    """`say` is told of what happens: kind, text, why. Times are in seconds on the caller's clock."""

    def __init__(self, mode: str, say: Callable[[str, str, str], None]) -> None:
        self._mode, self._say = mode, say
        self.status: Callable[[], BackupStatus] = BackupStatus
        self._seen = BackupStatus()
        self._last_s: float | None = None
        self._steps_s = self._backup_s = 0.0

    def step(self, now_s: float, backup_s: float) -> None:
        """A step was committed at `now_s`; the backup cost its slowest worker `backup_s`."""
        if self._last_s is not None:
            self._steps_s += now_s - self._last_s
            self._backup_s += backup_s
        self._last_s = now_s

    def pause(self) -> None:
        """The time until the next step is no step's."""
        self._last_s = None

    def look(self) -> None:
        """See how it stands, and say what is new."""
        status = self.status()
        if status.restarts > self._seen.restarts:
            self._say("trouble", "the backup is gone", "another is started and seeded beside the training")
        elif status.restarts and self._seen.latest is None and status.latest is not None:
            self._say("backup", f"a new backup has the state of step {status.latest}", "")
        self._seen = status

    def as_json(self) -> dict[str, Any]:
        """For `status` and a job's result; the share is measured at the sender, from 0 to 1."""
        return {
            "mode": self._mode,
            "step": self._seen.latest,
            "bytes": self._seen.size_bytes,
            "peak_bytes": self._seen.peak_bytes,
            "share_of_step_time": self._backup_s / self._steps_s if self._steps_s else 0.0,
            "restarts": self._seen.restarts,
        }

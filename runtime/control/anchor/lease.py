"""The anchor's hold on its own machine: while it is renewed, the dead man's switch waits."""

from __future__ import annotations

import threading
from pathlib import Path

RENEW_S = 10.0


class Lease:
    """Renews the lease from a thread of its own, from its making to `release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._over = threading.Event()
        self._path.touch()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._over.wait(RENEW_S):
            self._path.touch()

    def release(self, end_machine: bool) -> None:
        """Stop renewing; with `end_machine` the switch is told that nobody needs the machine any more."""
        self._over.set()
        self._thread.join()
        if end_machine:
            self._path.unlink(missing_ok=True)

"""Who waits for whom where many nodes share a machine, as on a local fleet.

Workers compute all the time. Launcher and agents do so for moments, for which all workers wait, so they go
first. A worker that boots goes last: if it booted in a cloud, it would take nothing from those that train.

Linux may share the processor out between sessions; then the niceness of a process counts among those of its
own session only, and a session has one, too (sched(7), "The autogroup feature"). A worker leads its own.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

TRAINING, BOOTING = 5, 10  # niceness
_AUTOGROUP = Path("/proc/self/autogroup")
# Who is not root is told to come again if anybody on this machine has just changed such a number.
_PATIENCE_S, _AGAIN_S = 5.0, 0.05


def give_way(session: int = BOOTING) -> None:
    """Called by a worker that is born on a shared machine, when it leads a session of its own.

    And by the backup, which goes on as those that train do: with `session` TRAINING.
    """
    os.nice(TRAINING)
    _set_session(session, time.monotonic() + _AGAIN_S)


def boot_politely(boot: Callable[[], Result]) -> Result:
    """What `boot` returns, or raises: as a worker that boots; what comes afterwards is training.

    In a thread of its own, since nobody but root may take a niceness back.
    """
    from concurrent.futures import ThreadPoolExecutor

    try:
        with ThreadPoolExecutor(1, "boot", _be_last) as thread:
            return thread.submit(boot).result()
    finally:
        _set_session(TRAINING, time.monotonic() + _PATIENCE_S)


def _be_last() -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BOOTING)


def _set_session(niceness: int, until_s: float) -> None:
    while True:
        try:
            _AUTOGROUP.write_text(str(niceness))
        except BlockingIOError:
            if time.monotonic() < until_s:
                time.sleep(_AGAIN_S)
                continue
        except OSError:
            pass  # there are no such sessions here
        return

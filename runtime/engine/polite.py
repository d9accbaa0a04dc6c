"""Work that yields to others: where nodes share a machine, one that gets ready takes no time from training.

An instance that boots in a cloud costs its neighbours nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")
_NICENESS = 10


def politely(function: Callable[[], Result]) -> Result:
    """The function's result, or what it raises; computed at a low priority on a machine of several nodes.

    In a thread of its own, since only a privileged process may take a low priority back.
    """
    if "PARCAE_ZYGOTE" not in os.environ:
        return function()
    outcome: list[Any] = []

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            outcome.extend((function(), None))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            outcome.extend((None, error))

    thread = threading.Thread(target=run, name="politely")
    thread.start()
    thread.join()
    if outcome[1] is not None:
        raise outcome[1]
    result: Result = outcome[0]
    return result

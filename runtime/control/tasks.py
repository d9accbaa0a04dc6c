"""Ending asyncio's tasks, for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

_CANCEL_AGAIN_S = 0.1


async def cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel tasks and return when they have ended.

    Once is not enough: Python 3.11's `wait_for` loses a cancellation that arrives just when what it waits for
    is done (python/cpython issue 86296), and the task would go on for ever.
    """
    left: set[asyncio.Task[Any]] = set(tasks)
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=_CANCEL_AGAIN_S)
        _ = [task.exception() for task in done if not task.cancelled()]  # seen, or asyncio would complain

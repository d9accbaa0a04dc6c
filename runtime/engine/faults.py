"""Scripted faults for tests: at a named point of a step this very process dies by SIGKILL, or fails.

A worker dies once; one that is told to fail, or to die always, does so at every attempt, as on a broken
machine.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

# Where a worker can be told to die. `start` is before it is ready for the first time,
# `before_vote`/`after_vote` surround the vote, `optimiser` is half-way through a layer's update, `evaluate`
# after a held-out micro-batch, `send` and `receive` are in the middle of a state transfer, `prepare` while
# the groups of the next generation are built, `copy_send` and `copy` in the middle of a layer that is
# copied ahead, `replay` before a copied layer is brought forward by a step, `abort` while another death is
# being recovered from, `push` in the middle of a layer on its way to the backup.
POINTS = (
    "start",
    "forward",
    "backward",
    "reduce",
    "before_vote",
    "after_vote",
    "commit",
    "optimiser",
    "evaluate",
    "prepare",
    "copy_send",
    "copy",
    "replay",
    "switch",
    "send",
    "receive",
    "abort",
    "push",
)

# What a worker says on its standard error before it dies of a fault; the point follows.
SAID = "a scripted death at: "


class FaultInjector:
    """Dies when the worker reaches (step, point); a fault with no step dies at the first such point."""

    def __init__(self, node: str, faults: Sequence[dict[str, Any]]) -> None:
        mine = [fault for fault in faults if fault["node"] == node]
        self._faults = [(f.get("step"), str(f["point"]), bool(f.get("fails"))) for f in mine]

    def at(self, step: int, point: str) -> None:
        """Die here if the script says so: at the first such point of that step (from 0) or a later one.

        Raises:
            RuntimeError: the script says that it `fails` here.

        A worker that was a spare at the scripted step dies when it has a position again.
        """
        for when, where, fails in self._faults:
            if where == point and (when is None or step >= when):
                if fails:
                    raise RuntimeError(f"a scripted failure at: {point}")
                os.write(2, f"{SAID}{point}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)

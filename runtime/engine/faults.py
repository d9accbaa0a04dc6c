"""Scripted deaths for tests: SIGKILL to this very process at a named point of a step, and nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

# Where a worker can be told to die. `before_vote`/`after_vote` surround the vote, `optimiser` is half-way
# through a layer's update, `evaluate` after a held-out micro-batch, `send` and `receive` are in the middle of
# a state transfer, `prepare` while the groups of the next generation are built, `copy_send` and `copy` in the
# middle of a layer that is copied ahead, `replay` before a copied layer is brought forward by a step, `abort`
# while another death is being recovered from, `push` in the middle of a layer on its way to the backup.
POINTS = (
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
        self._faults = [(f.get("step"), str(f["point"])) for f in faults if f["node"] == node]

    def at(self, step: int, point: str) -> None:
        """Die here if the script says so: at the first such point of that step (from 0) or a later one.

        A worker that was a spare at the scripted step dies when it has a position again.
        """
        for when, where in self._faults:
            if where == point and (when is None or step >= when):
                os.write(2, f"{SAID}{point}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)

"""What a node has been warned of, on this machine's clock, whatever the node's own clock shows."""

from __future__ import annotations

import math
import time
from typing import Any

from cloud.types import Notice, NoticeKind


class NodeNotices:
    """The notices of one node. Its agent tells deadlines on its own clock, and in each greeting its time.

    So what counts is the time that is left, and a deadline is late by the way of one message at most.
    """

    def __init__(self) -> None:
        self._told: set[tuple[str, float | None]] = set()
        self._known: list[Notice] = []
        self._ahead_s = 0.0

    def greeted(self, node_time_s: float) -> None:
        """The node's clock shows this Unix time now."""
        self._ahead_s = node_time_s - time.time()

    def told(self, words: dict[str, Any]) -> Notice | None:
        """By the agent; None: a new agent tells again what the old one told."""
        kind, deadline_s = str(words["kind"]), words["deadline_s"]
        if (kind, deadline_s) in self._told:
            return None
        self._told.add((kind, deadline_s))
        ours_s = None if deadline_s is None else deadline_s - self._ahead_s
        self._known.append(Notice(NoticeKind(kind), ours_s))
        return self._known[-1]

    def told_by_api(self, notice: Notice) -> bool:
        """By the cloud's API, on our clock. Whether it is news: the node has not heard of it itself."""
        if any(known.kind is notice.kind for known in self._known):
            return False
        self._known.append(notice)
        return True

    def late_s(self, time_s: float) -> float:
        """By how much the node has outlived its last deadline; `time_s` is Unix time. Without one: -inf."""
        deadlines = [notice.deadline_s for notice in self._known if notice.deadline_s is not None]
        return time_s - max(deadlines, default=math.inf)

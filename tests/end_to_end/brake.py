"""Holds back what nodes vote, so that something that is awaited happens while a job still trains.

A step is decided when the last vote is in, so this is how a test waits for an event without sleeping in the
launcher's loop, which goes on: nodes join, are lost and are told of, however fast or slow the machine is.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest

from runtime.control.fleet.events import WorkerMessage
from runtime.control.fleet.fleet import Fleet
from runtime.control.messages import Vote

# A vote that is held for longer is let go: the launcher would call its node stuck.
LONGEST_HOLD_S = 8.0
_LOOK_S = 0.05


def is_vote(event: Any) -> bool:
    """Whether a node tells what it computed."""
    return isinstance(event, WorkerMessage) and event.message["t"] == Vote.t


class Brake:
    """On the way of votes from the nodes to the launcher, while `most_s` says that they are to wait.

    `most_s` is how long a vote may be held after the last step, in seconds; 0: not at all.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most_s: Callable[[], float]) -> None:
        self._most_s, self._stepped_s = most_s, 0.0
        emit = Fleet._emit

        def later(fleet: Fleet, event: Any) -> None:
            if is_vote(event) and time.monotonic() - self._stepped_s < most_s():
                asyncio.get_running_loop().call_later(_LOOK_S, later, fleet, event)
            else:
                emit(fleet, event)

        monkeypatch.setattr(Fleet, "_emit", later)

    def stepped(self) -> None:
        """A step was committed: to be called by the test's watch."""
        self._stepped_s = time.monotonic()


class Pace:
    """No step takes less than `least_s`: what a trace does by the clock happens on a fast machine too.

    Whatever the nodes tell after a vote that is held waits behind it, so that nothing changes but the time.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, least_s: float) -> None:
        self._least_s, self._stepped_s = least_s, 0.0
        self._emit = Fleet._emit
        self._held: defaultdict[Fleet, deque[Any]] = defaultdict(deque)
        monkeypatch.setattr(Fleet, "_emit", lambda fleet, event: self._tell(fleet, event))

    def stepped(self) -> None:
        """A step was committed: to be called by the test's watch."""
        self._stepped_s = time.monotonic()

    def _left_s(self, event: Any) -> float:
        return self._stepped_s + self._least_s - time.monotonic() if is_vote(event) else 0.0

    def _tell(self, fleet: Fleet, event: Any) -> None:
        self._held[fleet].append(event)
        if len(self._held[fleet]) == 1:
            self._release(fleet)

    def _release(self, fleet: Fleet) -> None:
        held = self._held[fleet]
        while held:
            if (left_s := self._left_s(held[0])) > 0:
                asyncio.get_running_loop().call_later(left_s, self._release, fleet)
                return
            self._emit(fleet, held.popleft())

"""Holds back what nodes vote, so that something that is awaited happens while a job still trains.

A step is decided when the last vote is in, so this is how a test waits for an event without sleeping in the
launcher's loop, which goes on: nodes join, are lost and are told of, however slow the machine is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from runtime.control.fleet.events import WorkerMessage
from runtime.control.fleet.fleet import Fleet
from runtime.control.messages import Vote

# A vote that is held for longer is let go: the launcher would call its node stuck.
LONGEST_HOLD_S = 8.0
_LOOK_S = 0.05


class Brake:
    """On the way of votes from the nodes to the launcher, while `most_s` says that they are to wait.

    `most_s` is how long a vote may be held after the last step, in seconds; 0: not at all.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most_s: Callable[[], float]) -> None:
        self._most_s, self._stepped_s = most_s, 0.0
        emit = Fleet._emit

        def later(fleet: Fleet, event: Any) -> None:
            vote = isinstance(event, WorkerMessage) and event.message["t"] == Vote.t
            if vote and time.monotonic() - self._stepped_s < most_s():
                asyncio.get_running_loop().call_later(_LOOK_S, later, fleet, event)
            else:
                emit(fleet, event)

        monkeypatch.setattr(Fleet, "_emit", later)

    def stepped(self) -> None:
        """A step was committed: to be called by the test's watch."""
        self._stepped_s = time.monotonic()

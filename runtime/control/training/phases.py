"""What the coordinator is doing, what it needs of the fleet, and how it takes what happens."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from cloud.provider import CloudError, CredentialsError, QuotaError
from runtime.control.fleet.events import FleetEvent
from runtime.control.job.journal import JobState
from runtime.control.training.roster import Roster

# At the budget's end the last state may take this long, and two steps, to come to the anchor.
DRAIN_S = 10.0
_LONGEST_WAIT_S = 1.0


class Phase(StrEnum):
    """What the coordinator is doing."""

    WAITING = "waiting"  # no generation: too few nodes
    RUNNING = "running"  # a generation is at work (perhaps while the next is prepared)
    RECOVERING = "recovering"  # an abort is out, survivors are reporting
    FINISHING = "finishing"  # every step is committed, digests are coming in
    ENDED = "ended"


class FleetPort(Protocol):
    """What the coordinator needs of the fleet."""

    events: asyncio.Queue[FleetEvent]

    def send(self, node: str, message: dict[str, Any]) -> None:
        """To the node's worker, in order, at once."""

    def kill_worker(self, node: str) -> None:
        """End a mute worker and start another."""

    def end(self, node: str, why: str) -> None:
        """End the node's instance and rent another."""


@dataclass(frozen=True)
class StopRequest:
    """The job is to end now, in this state and for this reason."""

    state: JobState
    why: str


# Between two turns of the loop lie a wait and some milliseconds of work. If it took so much longer, this
# process was not running: it was stopped, or its machine slept.
_ASLEEP_S = 1.0


class Turns:
    """Tells when this process was not running, so that nobody is blamed for not having been heard."""

    def __init__(self) -> None:
        self._last_s = math.inf

    def gap_s(self, now_s: float) -> float:
        """How long it slept since this was last asked, the wait included; 0 if it did not."""
        passed_s, self._last_s = now_s - self._last_s, now_s
        return passed_s if passed_s > _LONGEST_WAIT_S + _ASLEEP_S else 0.0


# At the start, nodes that are still booting are waited for this long.
START_PATIENCE_S = 20.0


class StartGate:
    """Holds the first layout back while nodes boot: it would only have to be changed again."""

    def __init__(self, patience_s: float = START_PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._open_at_s: float | None = None
        self._open = False

    def closed(self, booting: bool, now_s: float) -> bool:
        """Whether to wait. Once open it stays open."""
        if self._open_at_s is None:
            self._open_at_s = now_s + self._patience_s
        self._open = self._open or not booting or now_s >= self._open_at_s
        return not self._open

    def postpone(self, gap_s: float) -> None:
        """For so long nobody could have been heard."""
        if self._open_at_s is not None:
            self._open_at_s += gap_s


def give_up_on(error: CloudError, roster: Roster, fewest_nodes: int | None) -> None:
    """Raise what no waiting can mend, unless there are enough nodes to start, or some are on their way."""
    hopeless = isinstance(error, QuotaError | CredentialsError)
    if hopeless and not roster.booting and len(roster.ready) < (fewest_nodes or 1):
        raise error


def once(action: Callable[[], None]) -> Callable[[], None]:
    """The action, which later calls do not repeat."""
    left = [action]
    return lambda: left.pop()() if left else None


async def next_batch(queue: asyncio.Queue[Any], timeout_s: float) -> Sequence[object]:
    """The next events: what happened at one instant is handled, and planned for, together.

    Empty if nothing happens for `timeout_s`, or for a second.
    """
    batch: list[object] = []
    if queue.empty():
        try:
            batch.append(await asyncio.wait_for(queue.get(), max(0.0, min(timeout_s, _LONGEST_WAIT_S))))
        except TimeoutError:
            return batch
    while not queue.empty():
        batch.append(queue.get_nowait())
    return batch

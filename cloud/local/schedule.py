"""When named instances exist: what a trace says, or a constant number of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ACTIONS = ("add", "remove", "kill")


@dataclass(frozen=True)
class ScheduleEvent:
    """At `time_s` (trace seconds) something happens to the instance `name`.

    It appears (`add`), is reclaimed (`remove`: with a notice, if the provider gives any) or vanishes without
    a warning (`kill`).
    """

    time_s: float
    action: str
    name: str


@dataclass(frozen=True)
class Schedule:
    """Events in order of time. Those at time 0 or before describe what exists at the start.

    `replaces`: who gives an instance back can have another for it.

    Raises:
        ValueError: a time goes backwards, an unknown action, or an instance that is added twice or removed
        unseen.
    """

    events: tuple[ScheduleEvent, ...]
    replaces: bool = False

    def __post_init__(self) -> None:
        present: set[str] = set()
        last_s = float("-inf")
        for index, event in enumerate(self.events):
            where = f"schedule event {index} ({event.action} {event.name} at {event.time_s:g} s)"
            if event.time_s < last_s:
                raise ValueError(f"{where}: the time goes backwards")
            if event.action not in ACTIONS:
                raise ValueError(f"{where}: the action is none of {', '.join(ACTIONS)}")
            if (event.action == "add") == (event.name in present):
                fault = "exists already" if event.name in present else "does not exist"
                raise ValueError(f"{where}: the instance {fault}")
            last_s = event.time_s
            (present.add if event.action == "add" else present.remove)(event.name)

    @classmethod
    def of(cls, rows: Iterable[tuple[float, str, str]]) -> Schedule:
        """From rows (time_s, action, name)."""
        return cls(tuple(ScheduleEvent(*row) for row in rows))

    @classmethod
    def constant(cls, count: int, prefix: str = "node") -> Schedule:
        """`count` instances from the start, for ever."""
        events = tuple(ScheduleEvent(0.0, "add", f"{prefix}{index + 1}") for index in range(count))
        return cls(events, replaces=True)

"""Availability over time: which instances existed when, and what can be said about it."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from runtime.planning.errors import InputError
from runtime.planning.placement import worker_names

ADD, REMOVE, KILL = "add", "remove", "kill"
ACTIONS = (ADD, REMOVE, KILL)


@dataclass(frozen=True)
class TraceEvent:
    """At `time_s` instance `name` appears (add), is reclaimed (remove) or vanishes unannounced (kill)."""

    time_s: float
    action: str
    name: str


@dataclass(frozen=True)
class TraceStatistics:
    """A trace in numbers. Events at time 0 are no allocations; `*_events` count distinct times."""

    hours: float
    max_available: int
    min_available: int
    mean_available: float
    preempted: int
    allocated: int
    preemption_events: int
    allocation_events: int
    losses_per_hour: float
    gains_per_hour: float
    mean_cluster: float


@dataclass(frozen=True)
class Trace:
    """Named instances coming and going from time 0 to `end_s`. Build it with `parse_trace` or `trace_of`."""

    name: str
    events: tuple[TraceEvent, ...]
    end_s: float

    @cached_property
    def instants(self) -> tuple[tuple[float, tuple[TraceEvent, ...]], ...]:
        """The events grouped by time."""
        groups: list[tuple[float, list[TraceEvent]]] = []
        for event in self.events:
            if not groups or groups[-1][0] != event.time_s:
                groups.append((event.time_s, []))
            groups[-1][1].append(event)
        return tuple((time_s, tuple(group)) for time_s, group in groups)

    @cached_property
    def changes(self) -> tuple[tuple[float, int, int], ...]:
        """(time_s, losses, gains) at every time at which something happens."""
        return tuple(
            (time_s, len(events) - gains, gains)
            for time_s, events in self.instants
            for gains in [sum(event.action == ADD for event in events)]
        )

    @cached_property
    def lives(self) -> Trace:
        """The same trace with a name of its own for every life of an instance.

        An instance that comes again is another machine (`node3#2`); one that goes at the moment it comes
        never was.
        """
        born: dict[str, tuple[int, float, str]] = {}  # where its add stands, when, and its unique name
        times_seen: dict[str, int] = {}
        kept: list[TraceEvent | None] = []
        for event in self.events:
            if event.action == ADD:
                times_seen[event.name] = times_seen.get(event.name, 0) + 1
                again = times_seen[event.name]
                unique = event.name if again == 1 else f"{event.name}#{again}"
                born[event.name] = (len(kept), event.time_s, unique)
                kept.append(replace(event, name=unique))
                continue
            index, since_s, unique = born.pop(event.name)
            if since_s == event.time_s:
                kept[index] = None
            else:
                kept.append(replace(event, name=unique))
        return Trace(self.name, tuple(event for event in kept if event is not None), self.end_s)

    def with_gpus(self, gpus: int) -> Trace:
        """The same trace told by workers, `gpus` of them on every instance, coming and going together.

        At any instant first the first workers of all instances, then the second ones.
        """
        if gpus == 1:
            return self
        events = tuple(
            replace(event, name=worker_names(event.name, gpus)[gpu])
            for _, group in self.instants
            for gpu in range(gpus)
            for event in group
        )
        return Trace(self.name, events, self.end_s)

    @cached_property
    def counts(self) -> tuple[tuple[float, int], ...]:
        """Availability after each instant with events."""
        count, result = 0, []
        for time_s, group in self.instants:
            count += sum(1 if event.action == ADD else -1 for event in group)
            result.append((time_s, count))
        return tuple(result)

    def available(self, time_s: float) -> int:
        """Instances held at `time_s`, after its events."""
        index = bisect_right(self.counts, (time_s, float("inf")))
        return self.counts[index - 1][1] if index else 0

    def held_s(self, start_s: float, end_s: float) -> float:
        """Instance-seconds held between two times."""
        total, last_s, count = 0.0, start_s, self.available(start_s)
        for time_s, after in self.counts:
            if start_s < time_s < end_s:
                total += count * (time_s - last_s)
                last_s, count = time_s, after
        return total + count * (end_s - last_s)

    def interval_counts(self, interval_s: float) -> tuple[int, ...]:
        """Availability at the start of every interval."""
        intervals = max(1, -int(-self.end_s // interval_s))
        return tuple(self.available(index * interval_s) for index in range(intervals))

    def interval_means(self, interval_s: float) -> tuple[float, ...]:
        """Mean availability of every interval (the last may be shorter)."""
        result, start_s = [], 0.0
        while start_s < self.end_s:
            stop_s = min(self.end_s, start_s + interval_s)
            result.append(self.held_s(start_s, stop_s) / (stop_s - start_s))
            start_s += interval_s
        return tuple(result)

    def sliced(self, start_minute: float | None, end_minute: float | None) -> Trace:
        """The part from one minute (included) to another (excluded); what is there at its start is at time 0.

        Raises:
            InputError: the part is empty.
        """
        start_s = 0.0 if start_minute is None else start_minute * 60
        end_s = self.end_s if end_minute is None else min(self.end_s, end_minute * 60)
        if not 0 <= start_s < end_s:
            raise InputError(
                f"{self.name}: minutes {start_s / 60:g} to {end_s / 60:g} are not a part of its "
                f"{self.end_s / 60:g} minutes"
            )
        present: dict[str, None] = {}
        later: list[TraceEvent] = []
        for event in self.events:
            if event.time_s <= start_s:
                if event.action == ADD:
                    present[event.name] = None
                else:
                    present.pop(event.name, None)
            elif event.time_s < end_s:
                later.append(replace(event, time_s=event.time_s - start_s))
        return Trace(self.name, (*(TraceEvent(0.0, ADD, name) for name in present), *later), end_s - start_s)

    def capped(self, most: int) -> Trace:
        """What a job gets of it that never wants more than `most` instances at once (1 or more).

        An offer is left alone while the fleet is full, and taken up when a place becomes free and it is still
        there.
        """
        held: dict[str, None] = {}
        offered: dict[str, None] = {}
        events: list[TraceEvent] = []
        for time_s, group in self.lives.instants:
            for event in group:
                if event.action == ADD:
                    offered[event.name] = None
                elif event.name in held:
                    del held[event.name]
                    events.append(event)
                else:
                    del offered[event.name]
            for name in list(offered)[: most - len(held)]:
                del offered[name]
                held[name] = None
                events.append(TraceEvent(time_s, ADD, name))
        return Trace(self.name, tuple(events), self.end_s)

    def redrawn(self, seed: int) -> Trace:
        """The same losses and gains at the same times, but who is lost is drawn anew, all alike likely."""
        draw = random.Random(seed)
        present: list[str] = []
        events: list[TraceEvent] = []
        for _, group in self.lives.instants:
            there = len(present)
            for event in group:
                if event.action == ADD:
                    present.append(event.name)
                    events.append(event)
                else:
                    there -= 1  # never one that came at this very moment
                    events.append(replace(event, name=present.pop(draw.randint(0, there))))
        return Trace(self.name, tuple(events), self.end_s)

    @cached_property
    def statistics(self) -> TraceStatistics:
        """The trace in numbers."""
        hours = self.end_s / 3600
        start_s = self.events[0].time_s if self.events else 0.0
        losses = [event for event in self.events if event.action != ADD]
        gains = [event for event in self.events if event.action == ADD and event.time_s > start_s]
        loss_times = {event.time_s for event in losses}
        levels = [count for _, count in self.counts]
        return TraceStatistics(
            hours=hours,
            max_available=max(levels, default=0),
            min_available=min(levels, default=0),
            mean_available=self.held_s(0.0, self.end_s) / self.end_s if self.end_s else 0.0,
            preempted=len(losses),
            allocated=len(gains),
            preemption_events=len(loss_times),
            allocation_events=len({event.time_s for event in gains}),
            losses_per_hour=len(losses) / hours if hours else 0.0,
            gains_per_hour=len(gains) / hours if hours else 0.0,
            mean_cluster=len(losses) / len(loss_times) if loss_times else 0.0,
        )

    def as_csv(self) -> str:
        """The trace in our own format."""
        rows = [f"{event.time_s:g},{event.action},{event.name}" for event in self.events]
        if self.events and self.end_s > self.events[-1].time_s:
            rows.append(f"{self.end_s:g},end,")
        return "\n".join(["time_s,event,instance", *rows]) + "\n"


def trace_from_counts(
    name: str, counts: Sequence[tuple[float, int]], end_s: float, victims: str = "random", seed: int = 0
) -> Trace:
    """A trace from availability alone: instances get names, and victims are drawn by `seed`.

    `victims` is "random", or "newest" (last in, first out). `counts` are (time_s, instances), times rising.
    """
    draw = random.Random(seed)
    present: list[str] = []
    events: list[TraceEvent] = []
    made = 0
    for time_s, count in counts:
        while len(present) > count:
            index = len(present) - 1 if victims == "newest" else draw.randrange(len(present))
            events.append(TraceEvent(time_s, REMOVE, present.pop(index)))
        while len(present) < count:
            made += 1
            present.append(f"node{made}")
            events.append(TraceEvent(time_s, ADD, present[-1]))
    return Trace(name, tuple(events), end_s)


def synthetic_trace(
    name: str,
    seed: int,
    hours: float,
    max_available: int,
    mean_available: float,
    losses_per_hour: float,
    mean_cluster: float = 1.8,
    lattice_s: float = 60.0,
    gains_per_hour: float | None = None,
) -> Trace:
    """One draw of a made-up trace with roughly these figures, the same for the same seed.

    Losses come in clusters of geometric size with the given mean, gains in clusters too; both at rates that
    pull availability back to its mean, so gains per hour follow losses per hour, or to a line through the
    mean that falls or rises by the difference. Times lie on multiples of `lattice_s`.
    """
    draw = random.Random(seed)
    present: list[str] = []
    events: list[TraceEvent] = []
    made = 0

    def add(time_s: float, count: int) -> None:
        nonlocal made
        for _ in range(count):
            made += 1
            present.append(f"node{made}")
            events.append(TraceEvent(time_s, ADD, present[-1]))

    def cluster() -> int:
        size = 1
        while draw.random() > 1 / mean_cluster:
            size += 1
        return size

    gained = losses_per_hour if gains_per_hour is None else gains_per_hour
    rise = gained - losses_per_hour  # instances an hour
    add(0.0, min(max_available, max(1, round(mean_available - rise * hours / 2))))
    ticks = round(hours * 3600 / lattice_s)
    rate = losses_per_hour / mean_cluster * lattice_s / 3600
    gain_rate = gained / mean_cluster * lattice_s / 3600
    for tick in range(1, ticks):
        time_s = tick * lattice_s
        level = max(1.0, mean_available + rise * (time_s / 3600 - hours / 2))
        room = max(1.0, max_available - level)
        if draw.random() < rate * (len(present) / level) ** 2:
            for _ in range(min(cluster(), len(present))):
                events.append(TraceEvent(time_s, REMOVE, present.pop(draw.randrange(len(present)))))
        if draw.random() < gain_rate * (max_available - len(present)) / room:
            add(time_s, min(cluster(), max_available - len(present)))
    return Trace(name, tuple(events), hours * 3600)

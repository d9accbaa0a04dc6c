"""What jobs have seen of their cloud, as a trace: when each instance came, and how it went."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Sequence

from cloud.types import InstanceState
from runtime.control.job.journal import InstanceRecord
from runtime.planning.outlook import PoolMinute
from runtime.planning.trace import ADD, KILL, REMOVE, Trace, TraceEvent

_TOGETHER_S = 60.0


def held_trace(
    job: str, instances: Sequence[InstanceRecord], noticed: Collection[str], until_s: float
) -> Trace:
    """The instances that a job held until `until_s` (Unix seconds), times from the first launch on.

    What ended later was ended by us: the trace ends before. An end without a notice (`noticed` has the names
    of those that got one) is a kill. The oldest launch is time 0, and all within its minute are there then,
    as they were asked for together.
    """
    held = sorted(
        (record for record in instances if record.instance.launched_s < until_s),
        key=lambda record: (record.instance.launched_s, record.instance.name),
    )
    if not held:
        return Trace(job, (), 0.0)
    began_s = held[0].instance.launched_s
    events: list[TraceEvent] = []
    for record in held:
        name, came_s = record.instance.name, record.instance.launched_s - began_s
        came_s = 0.0 if came_s < _TOGETHER_S else came_s
        events.append(TraceEvent(round(came_s, 1), ADD, name))
        if record.instance.state is InstanceState.TERMINATED and record.updated_s < until_s:
            went_s = round(max(record.updated_s - began_s, came_s + 0.1), 1)
            events.append(TraceEvent(went_s, REMOVE if name in noticed else KILL, name))
    events.sort(key=lambda event: (event.time_s, event.action == ADD, event.name))
    return Trace(job, tuple(events), round(max(until_s - began_s, events[-1].time_s), 1))


def recorded_trace(name: str, rows: Sequence[PoolMinute], seed: int = 0) -> Trace:
    """What jobs recorded of pools, minute by minute, as one trace; minutes without a record are left out.

    Who is lost is drawn by `seed` from those that the pool had. What went without being lost was given back
    by us; it leaves the trace all the same, since nobody knows how long it would have stayed.
    """
    minutes: dict[int, dict[str, list[PoolMinute]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        minutes[row.minute][row.pool].append(row)
    held: dict[str, list[str]] = defaultdict(list)
    draw, made = random.Random(seed), 0
    events: list[TraceEvent] = []
    for index, minute in enumerate(sorted(minutes)):
        for pool in sorted({*held, *minutes[minute]}):
            there, of_pool = held[pool], minutes[minute].get(pool, [])
            now = sum(row.held for row in of_pool)
            lost = min(len(there), max(sum(row.lost for row in of_pool), len(there) - now))
            for _ in range(lost):
                gone = there.pop(draw.randrange(len(there)))
                events.append(TraceEvent(index * _TOGETHER_S, REMOVE, gone))
            for _ in range(now - len(there)):
                made += 1
                there.append(f"i{made}")
                events.append(TraceEvent(index * _TOGETHER_S, ADD, there[-1]))
    events.sort(key=lambda event: (event.time_s, event.action == ADD))
    return Trace(name, tuple(events), len(minutes) * _TOGETHER_S)

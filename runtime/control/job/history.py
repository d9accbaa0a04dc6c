"""What a job has seen of its cloud, as a trace: when each instance came, and how it went."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cloud.types import InstanceState
from runtime.control.job.journal import InstanceRecord
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

"""This machine as a cloud: a trace, or a constant number of nodes, and time that may run faster."""

from __future__ import annotations

from cloud.local.provider import LocalProvider
from cloud.local.schedule import Schedule
from cloud.types import Pool
from runtime.control.job import LaunchRequest
from runtime.control.journal import Journal
from runtime.control.providers import ProviderSetup
from runtime.planning.model import ModelSpec
from runtime.planning.trace_formats import parse_trace


def setup(request: LaunchRequest, spec: ModelSpec, journal: Journal) -> ProviderSetup:
    """Processes of this machine, priced like the model's device.

    Raises:
        InputError: the trace is wrong.
    """
    schedule = read_schedule(request)
    price = spec.price
    provider = LocalProvider(
        request.name,
        journal.job_folder(request.name),
        schedule,
        speed=request.speed,
        notice_s=request.notice_s,
        pool=Pool("local", "process", 1, price.spot_usd_per_hour, price.on_demand_usd_per_hour),
    )
    return ProviderSetup(
        provider,
        time_scale=request.speed,
        start_clock=provider.start_clock,
        clock_waits=any(event.time_s <= 0 for event in schedule.events),
    )


def read_schedule(request: LaunchRequest) -> Schedule:
    """Which local instances exist when: the trace's, or as many as are wanted for ever."""
    if request.trace is None:
        return Schedule.constant(request.nodes)
    trace = parse_trace(request.trace.read_text(encoding="utf-8"), str(request.trace))
    return Schedule.of((event.time_s, event.action, event.name) for event in trace.events)

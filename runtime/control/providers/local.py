"""This machine as a cloud: a trace, or a constant number of nodes, and time that may run faster."""

from __future__ import annotations

import os

from cloud.local.provider import LocalProvider
from cloud.local.schedule import Schedule
from cloud.types import Pool
from runtime.control.fleet.link_times import LinkTimes
from runtime.control.job.job import LaunchRequest
from runtime.control.job.journal import Journal
from runtime.control.providers import ProviderSetup
from runtime.planning.errors import InputError
from runtime.planning.model import ModelSpec
from runtime.planning.profile import STATE_BYTES_PER_PARAM
from runtime.planning.trace_formats import parse_trace

# Nodes whose launcher was killed wait so long for `parcae resume`.
LEASE_S = 60.0
GRADIENT_BYTES_PER_PARAM = 12  # one in fp32, and the exact sum in float64


def setup(request: LaunchRequest, spec: ModelSpec, journal: Journal) -> ProviderSetup:
    """Processes of this machine, priced like the model's device.

    Raises:
        InputError: the trace is wrong, or the model does not fit this machine.
    """
    check_memory(spec)
    schedule = read_schedule(request)
    price = spec.price
    provider = LocalProvider(
        request.name,
        journal.job_folder(request.name),
        schedule,
        speed=request.speed,
        notice_s=request.notice_s,
        environment={"PARCAE_DATA": str(request.home / "data")},
        pool=Pool("local", "process", request.gpus, price.spot_usd_per_hour, price.on_demand_usd_per_hour),
    )
    return ProviderSetup(
        provider,
        link_times=LinkTimes(lease_s=LEASE_S),
        time_scale=request.speed,
        start_clock=provider.start_clock,
        gpus=request.gpus,
        here=True,
        clock_waits=any(event.time_s <= 0 for event in schedule.events),
    )


def check_memory(spec: ModelSpec) -> None:
    """Refuse a model whose state alone is more than this machine has free: every local node lives here.

    Raises:
        InputError: it does not fit; the message has the arithmetic.
    """
    needed = spec.state_params * (STATE_BYTES_PER_PARAM + GRADIENT_BYTES_PER_PARAM)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > free:
        raise InputError(
            f"{spec.name}: {spec.state_params:,} parameters need {needed / 1e9:.0f} GB for weights, moments "
            f"and gradients, and this machine has {free / 1e9:.0f} GB free; train it on another cloud"
        )


def read_schedule(request: LaunchRequest) -> Schedule:
    """Which local instances exist when: the trace's, or as many as are wanted for ever."""
    if request.trace is None:
        return Schedule.constant(request.nodes)
    trace = parse_trace(request.trace.read_text(encoding="utf-8"), str(request.trace))
    return Schedule.of((event.time_s, event.action, event.name) for event in trace.events)

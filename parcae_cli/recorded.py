"""Traces of what was really held: by one job, or by all jobs in the pools of a cloud."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from parcae_cli.clouds import RENTED
from parcae_cli.errors import UsageError
from parcae_cli.home import parcae_home

if TYPE_CHECKING:
    from runtime.planning.trace import Trace


def trace_of_job(job: str) -> Trace:
    """The instances that a job has held while it trained.

    Raises:
        UnknownJobError: there is no such job.
        UsageError: it held none.
    """
    from runtime.control.job.history import held_trace
    from runtime.control.job.journal import Journal, UnknownJobError

    home = parcae_home()
    if not (home / "journal.db").exists():
        raise UnknownJobError(f"no job named {job!r}: {home} has no jobs")
    journal = Journal(home)
    try:
        known = journal.job(job)
        instances = journal.instances(job)
        events = journal.events(job, last=1_000_000)
        folder = journal.job_folder(job)
    finally:
        journal.close()
    noticed = {event.text.split()[0] for event in events if event.kind == "notice"}
    metrics = folder / "metrics.jsonl"
    steps = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    # What was ended after the last step was ended by us.
    until_s = known.created_s + json.loads(steps[-1])["time_s"] if steps else known.created_s
    made = held_trace(job, instances, noticed, until_s)
    if not made.events:
        raise UsageError(f"job {job} held no instance while it trained", "See: parcae status " + job)
    return made


def trace_of_cloud(cloud: str, hours: float, pools: Sequence[str]) -> Trace:
    """What all jobs of the last `hours` recorded of a cloud's pools (of all of them, if none is named).

    Raises:
        UsageError: the cloud has no pools, or nothing was recorded; the message says what there is.
    """
    from runtime.control.job.history import recorded_trace
    from runtime.control.job.journal import Journal

    if cloud not in RENTED:
        raise UsageError(f"--cloud {cloud}: jobs record the pools of {' and '.join(RENTED)}")
    home = parcae_home()
    if not (home / "journal.db").exists():
        raise UsageError(f"{home} has no jobs that could have recorded anything")
    since = int(time.time() // 60 - hours * 60)
    journal = Journal(home)
    try:
        known = journal.recorded_pools(cloud, since)
        for pool in pools:
            if pool not in known:
                there = ", ".join(known) or "none"
                raise UsageError(f"--pool {pool}: nothing is recorded of it", f"There are: {there}")
        rows = journal.capacity(cloud, list(pools) or known, since)
    finally:
        journal.close()
    made = recorded_trace(cloud, rows)
    if not made.events:
        raise UsageError(
            f"no job has recorded an instance of {cloud} in the last {hours:g} h", "Give more --hours"
        )
    return made

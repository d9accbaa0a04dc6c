"""What a job has seen of its cloud, as a trace."""

from __future__ import annotations

from cloud.types import Instance, InstanceState, Pool
from runtime.control.job.history import held_trace, recorded_trace
from runtime.control.job.journal import InstanceRecord
from runtime.planning.outlook import PoolMinute
from runtime.planning.trace_formats import parse_trace

POOL = Pool("a", "g5.xlarge", 1, 0.2, 0.5)


def record(name: str, launched_s: float, ended_s: float | None = None) -> InstanceRecord:
    """An instance that came then, and went then or not at all."""
    state = InstanceState.RUNNING if ended_s is None else InstanceState.TERMINATED
    instance = Instance(name, name, "job", "token", POOL, state, launched_s)
    return InstanceRecord(instance, (), ended_s if ended_s is not None else launched_s)


def test_a_jobs_instances_become_a_trace_that_can_be_replayed() -> None:
    """Who came, who went with and without a notice; what was given back in the end is no loss."""
    held = [
        record("i-1", 1000.0, 1400.0),
        record("i-2", 1010.0, 1500.0),
        record("i-3", 1600.0, 2000.5),
        record("i-4", 1005.0),
    ]
    trace = held_trace("job", held, {"i-1"}, until_s=2000.0)
    rows = [(event.time_s, event.action, event.name) for event in trace.events]
    assert rows == [
        (0.0, "add", "i-1"),
        (0.0, "add", "i-2"),
        (0.0, "add", "i-4"),
        (400.0, "remove", "i-1"),
        (500.0, "kill", "i-2"),
        (600.0, "add", "i-3"),
    ]
    assert trace.end_s == 1000.0
    again = parse_trace(trace.as_csv(), "job.csv")
    assert (again.events, again.end_s) == (trace.events, trace.end_s)
    assert trace.statistics.preempted == 2


def test_a_job_without_instances_is_an_empty_trace() -> None:
    """Nothing was held: nothing to replay."""
    assert held_trace("job", [], (), 10.0).events == ()


def test_what_jobs_recorded_of_pools_is_a_trace_of_their_counts() -> None:
    """Losses and gains of one minute are both there, pools stay apart, empty minutes are left out."""
    rows = [
        PoolMinute(100, "g5/a", held=2, came=2),
        PoolMinute(100, "g5/b", held=1, came=1),
        PoolMinute(101, "g5/a", held=2, lost=1, came=1),
        PoolMinute(101, "g5/b", held=1),
        PoolMinute(500, "g5/a", held=0),
        PoolMinute(500, "g5/b", held=3, came=2),
    ]
    made = recorded_trace("aws", rows)
    assert [count for _, count in made.counts] == [3, 3, 3]
    assert made.end_s == 180 and made.statistics.preempted == 3 and made.statistics.allocated == 3
    assert parse_trace(made.as_csv(), "again.csv").counts == made.counts

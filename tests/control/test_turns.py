"""A launcher that was stopped, or whose machine slept, blames nobody for its own silence."""

from __future__ import annotations

from runtime.control.training.course import Course
from runtime.control.training.generations import PREPARE_TIMEOUT_S, Pending
from runtime.control.training.phases import START_PATIENCE_S, StartGate, Turns
from runtime.control.training.resumption import PATIENCE_S, Resumption
from runtime.planning.ledger import Ledger
from runtime.planning.types import Layout, MigrationKind, MigrationPlan, Position


def test_deadlines_are_put_off_by_the_time_asleep() -> None:
    """A survivor's answer and a generation that is built have as long after waking as they had before."""
    plan = MigrationPlan(
        2, MigrationKind.PIPELINE, Layout(1, 1), ((0,),), {"a": Position(0, 0)}, (), True, 0, 0.0, ""
    )
    course, turns = Course(Ledger(8), 10, deadline_s=104.0, pending=Pending(plan, 99.0)), Turns()
    for now_s in (100.0, 101.0, 102.4):  # waits, and a turn on a busy machine
        assert turns.gap_s(now_s) == 0
    woken_s = 102.5 + 3600
    course.postpone(turns.gap_s(woken_s))
    assert 104 - 102.5 <= course.deadline_s - woken_s <= 104 - 102.4 + 0.01
    assert course.pending is not None
    assert not course.pending.late(woken_s) and course.pending.late(woken_s + PREPARE_TIMEOUT_S)
    assert turns.gap_s(woken_s + 0.5) == 0


def test_what_nobody_awaits_stays_so() -> None:
    """A course without a deadline gets none by sleeping."""
    course = Course(Ledger(8), 10)
    course.postpone(3600)
    assert course.deadline_s == float("inf") and course.pending is None


def test_nodes_that_boot_or_hold_state_are_waited_for_as_long_after_a_sleep() -> None:
    """The first layout, and what a resumed job goes back to, do not depend on when the lid was closed."""
    gate, resumption = StartGate(), Resumption(5, 3, (3, 4, 1.0), 8)
    for patient in (gate, resumption):
        patient.postpone(3600)  # nothing is awaited yet
    assert gate.closed(True, 100.0) and resumption.waits((), True, 100.0)
    for patient in (gate, resumption):
        patient.postpone(3600)
    assert gate.closed(True, 3700 + START_PATIENCE_S - 0.1)
    assert resumption.waits((), True, 3700 + PATIENCE_S - 0.1)
    assert not gate.closed(True, 3700 + START_PATIENCE_S)
    assert not resumption.waits((), True, 3700 + PATIENCE_S + 0.1)

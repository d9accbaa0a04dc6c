"""When named instances exist."""

from __future__ import annotations

import pytest

from cloud.local.schedule import Schedule, ScheduleEvent


def test_constant_instances_are_there_from_the_start() -> None:
    """Without a trace there are so many instances, for ever."""
    assert Schedule.constant(2).events == (
        ScheduleEvent(0.0, "add", "node1"),
        ScheduleEvent(0.0, "add", "node2"),
    )


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([(5, "add", "a"), (4, "add", "b")], "event 1 .* the time goes backwards"),
        ([(0, "add", "a"), (1, "add", "a")], "exists already"),
        ([(0, "remove", "a")], "does not exist"),
        ([(0, "add", "a"), (1, "kill", "a"), (2, "remove", "a")], "does not exist"),
        ([(0, "steal", "a")], "none of add, remove, kill"),
    ],
)
def test_an_impossible_schedule_is_refused(rows: list[tuple[float, str, str]], says: str) -> None:
    """The error names the event and what is wrong with it."""
    with pytest.raises(ValueError, match=says):
        Schedule.of(rows)

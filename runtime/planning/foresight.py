"""A plan for a whole trace: how many go and come at every time is known, who goes is not."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.planning.forecast import Turn
from runtime.planning.horizon import Step
from runtime.planning.programme import Programme, Worth

CLOSE_S = 15.0  # changes closer than this are one change


@dataclass(frozen=True)
class Course:
    """The true course of availability: steps, when each begins, and how many instances there are before."""

    times_s: tuple[float, ...]
    steps: tuple[Step, ...]
    counts: tuple[int, ...]


def course_of(changes: Sequence[tuple[float, int, int]], end_s: float) -> Course:
    """The course of `changes`, (time_s, losses, gains) with times rising from 0; close ones become one."""
    merged: list[tuple[float, int, int]] = []
    for time_s, losses, gains in changes:
        if merged and time_s - merged[-1][0] < CLOSE_S:
            first_s, more_losses, more_gains = merged.pop()
            merged.append((first_s, losses + more_losses, gains + more_gains))
        else:
            merged.append((time_s, losses, gains))
    merged = merged or [(0.0, 0, 0)]  # nothing ever comes
    times_s = tuple(time_s for time_s, _, _ in merged)
    steps, counts, now = [], [], 0
    for (time_s, losses, gains), until_s in zip(merged, (*times_s[1:], end_s), strict=True):
        steps.append(Step((Turn(losses, gains, 1.0),), until_s - time_s))
        counts.append(now)
        now += gains - losses
    return Course(times_s, tuple(steps), tuple(counts))


class Foresight:
    """The programme given a whole trace."""

    def __init__(self, programme: Programme, changes: Sequence[tuple[float, int, int]], end_s: float) -> None:
        """`changes` are those of a trace (`Trace.changes`)."""
        course = course_of(changes, end_s)
        self._times_s, self._end_s = course.times_s, end_s
        self.programme = programme
        self._values = programme.path_values(course.steps, course.counts)

    def left_s(self, now_s: float) -> float:
        """Seconds to the end of what is known."""
        return max(self._end_s - now_s, 1e-9)

    def ahead(self, now_s: float) -> tuple[float, Worth]:
        """Seconds to the next change, and what each layout is worth before it."""
        number = bisect_right(self._times_s, now_s)
        until_s = self._times_s[number] if number < len(self._times_s) else self._end_s
        return max(0.0, until_s - now_s), self._values[number]

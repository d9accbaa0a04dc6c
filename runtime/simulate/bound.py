"""What no plan can expect to beat that knows how many instances come and go, and when, but not who goes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from runtime.planning.costs import Change, Cost
from runtime.planning.foresight import course_of
from runtime.planning.programme import Programme, Vector
from runtime.planning.types import MigrationKind
from runtime.simulate.setup import ReplaySetup

MOST_LAYOUTS = 160  # that are weighed; more than any measured profile has


class _Lenient(Programme):
    """What is left of a change when the next one comes is forgiven, and after a halt the start is free."""

    def _gain(self, lost: int, span_s: float, owing: bool) -> tuple[Vector, Vector | None]:
        return super()._gain(lost, span_s, owing)[0], None

    def _priced(self, change: Change) -> Cost:
        # who starts empty may be given the smallest stage: never more than a full fleet would copy
        if change.before is not None and change.before.stages != change.after.stages:
            least = self._profile.recut_bytes(change.before.stages, change.after.stages)
            change = replace(change, missing_bytes=min(change.missing_bytes, least))
        return super()._priced(change)

    def _stuck_worth(self, value: tuple[Vector, Vector]) -> Vector:
        best = value[0].max(axis=1, keepdims=True) if value[0].shape[1] else value[0]
        return np.broadcast_to(best, value[0].shape)


def expected_bound(setup: ReplaySetup) -> float | None:
    """Samples that no such plan can expect to exceed, over all the ways to draw who goes.

    The value of the dynamic programme over the true course of availability. Where it simplifies, it does so
    to the plan's advantage: one stage only is short after a loss (priced like the first), changes within 15 s
    are one, boot times are nothing, a change that outlasts its step is forgiven the rest, and a fleet that
    was too small starts again for nothing. One replay may be luckier than its expectation. None where the
    programme does not say: with notices, which tell who goes, and for instances with several GPUs.
    """
    if setup.notice_s or setup.gpus > 1:
        return None
    profile, most = setup.profile, max(1, setup.max_nodes)
    programme = _Lenient(profile, setup.costs, profile.contenders(1, most, MOST_LAYOUTS), most)
    course = course_of(setup.trace.lives.changes, setup.trace.end_s)
    values = programme.path_values(course.steps, course.counts)
    # a start that the next arrivals interrupt is begun anew: as good as waiting for them
    return max(
        (
            programme.rate[index] * max(0.0, step.span_s - _start_s(setup, programme, index))
            + float(values[number + 1].ready[index])
            for number, (step, count) in enumerate(zip(course.steps, course.counts, strict=True))
            for index, layout in enumerate(programme.layouts)
            if layout.positions <= count + step.turns[0].gains - step.turns[0].losses
        ),
        default=0.0,
    )


def _start_s(setup: ReplaySetup, programme: Programme, index: int) -> float:
    layout = programme.layouts[index]
    start = Change(MigrationKind.START, None, layout, fresh_nodes=layout.positions, noticed=True)
    return setup.costs.cost(setup.profile, start).total_s

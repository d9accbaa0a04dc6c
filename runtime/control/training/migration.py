"""From one generation to the next: built beside the running one or at once, begun, live, or given up."""

from __future__ import annotations

from collections.abc import Callable

from runtime.control.job.recorder import Recorder
from runtime.control.messages import Cancel, Message, Release
from runtime.control.training import generations
from runtime.control.training.course import Course
from runtime.control.training.generations import Pending
from runtime.control.training.phases import Phase
from runtime.control.training.roster import Roster
from runtime.control.training.votes import Ballot
from runtime.planning.types import GenerationLive, MigrationFailed, MigrationPlan, StateReported


class Migration:
    """Changes the generations of a course, and tells the workers. Times are on the coordinator's clock."""

    def __init__(
        self, course: Course, roster: Roster, recorder: Recorder, send: Callable[[str, Message], None]
    ) -> None:
        self._course, self._roster, self._recorder, self._send = course, roster, recorder, send

    def foresee(self, next_one: Pending) -> None:
        """Have the members build the next generation while the running one trains."""
        old, self._course.pending = self._course.pending, next_one
        if old is not None:
            for node in set(old.plan.assignment) - set(next_one.plan.assignment):
                self._send(node, Cancel(old.plan.generation))
        self.prepare(next_one.plan, next_one.ahead)

    def prepare(self, plan: MigrationPlan, ahead: bool = False) -> None:
        """Have the members build the plan's groups, and copy their state if `ahead`."""
        for node, message in generations.prepare_messages(plan, self._roster.workers, ahead).items():
            self._send(node, message)

    def switch(self, plan: MigrationPlan, deadline_s: float) -> None:
        """Begin the next step in the new generation; it is stuck if it is not done by `deadline_s`.

        Workers need not wait for each other: a source changes its layers only with the next commit, for which
        every receiver must have voted.
        """
        course = self._course
        course.phase = Phase.RUNNING
        course.running, course.fresh, course.pending = plan, True, None
        course.ballot = Ballot(plan.generation, course.step, len(plan.assignment))
        course.deadline_s = deadline_s
        for node, message in generations.switch_messages(plan, course.step, self._roster.workers).items():
            self._send(node, message)
        self._recorder.generation(plan)

    def live(self, plan: MigrationPlan, step: int, ballot: Ballot, pause_s: float) -> None:
        """The generation has committed its first step: its migration is over."""
        course = self._course
        course.fresh = False
        holds = generations.members_hold(plan)
        course.planning = [GenerationLive(plan.generation), StateReported(holds), *course.planning]
        for node in set(self._roster.workers) - set(plan.assignment):
            self._send(node, Release(plan.generation))
        self._recorder.migrated(plan, step, pause_s, self._roster.changes(), ballot.transfer)

    def cancel(self) -> None:
        """The next generation cannot be built; the running one goes on."""
        pending, self._course.pending = self._course.pending, None
        assert pending is not None
        for node in pending.plan.assignment:
            self._send(node, Cancel(pending.plan.generation))
        self._course.planning.append(MigrationFailed(pending.plan.generation))

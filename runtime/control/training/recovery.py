"""After a death or a failure: the step in flight is left, and survivors say what they hold."""

from __future__ import annotations

from collections.abc import Callable, Collection

from runtime.control.job.recorder import Recorder
from runtime.control.messages import Abort, Aborted, Message
from runtime.control.training.course import Course
from runtime.control.training.phases import Phase
from runtime.control.training.roster import Roster


class Answers:
    """Survivors of an abandoned step, on their way to say what they hold of `step`."""

    def __init__(self, generation: int, step: int, awaiting: Collection[str]) -> None:
        self.generation, self._step = generation, step
        self.awaiting = set(awaiting)
        self._holds: dict[str, frozenset[int]] = {}

    def answer(self, node: str, step: int, layers: Collection[int]) -> None:
        """A worker has left the generation. What it holds counts if it stands before the very same step."""
        if step == self._step:
            self._holds[node] = frozenset(layers)
        self.awaiting.discard(node)

    def lose(self, node: str) -> None:
        """A survivor has died too, perhaps after its answer; a worker in its place holds nothing."""
        self.awaiting.discard(node)
        self._holds.pop(node, None)

    def holds(self) -> dict[str, frozenset[int]]:
        """What the survivors hold."""
        return self._holds


class Recovery:
    """The way from an abandoned step to a course that stands still, every survivor having answered."""

    def __init__(
        self, course: Course, roster: Roster, recorder: Recorder, send: Callable[[str, Message], None]
    ) -> None:
        self._course, self._roster, self._recorder, self._send = course, roster, recorder, send
        self._answers = Answers(0, 0, ())

    @property
    def awaiting(self) -> list[str]:
        """Who has not answered yet."""
        return sorted(self._answers.awaiting)

    def begin(self, deadline_s: float) -> None:
        """Leave the step in flight, everywhere, and ask the survivors what they hold, until `deadline_s`."""
        course = self._course
        course.ledger = course.ledger.abandon()
        course.phase, course.deadline_s = Phase.RECOVERING, deadline_s
        if course.pending is not None:
            course.planning.append(course.pending.overtaken(self._recorder.event))
            course.pending = None
        # Whoever may still hold layers must answer, also nodes that only wait to be released.
        self._answers = Answers(course.highest_generation, course.step, self._roster.ready)
        for node in self.awaiting:
            self._send(node, Abort(course.highest_generation))

    def answer(self, node: str, message: Aborted) -> None:
        """A worker has left its generation."""
        if self._course.phase is Phase.RECOVERING and message.generation == self._answers.generation:
            self._answers.answer(node, message.step, message.holds)

    def lose(self, node: str) -> None:
        """A worker is gone."""
        self._answers.lose(node)

    def forget(self) -> None:
        """Nothing of what survivors hold counts any more."""
        self._answers = Answers(self._course.highest_generation, self._course.step, ())

    def finished(self) -> dict[str, frozenset[int]] | None:
        """What the survivors hold, if all have answered just now: the course stands still then."""
        if self._course.phase is not Phase.RECOVERING or self._answers.awaiting:
            return None
        self._course.wait()
        return self._answers.holds()

"""How a job ends: with the digests of its weights, or before its last step because it was told to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runtime.control.backup.keeper import CheckpointKeeper
from runtime.control.backup.process import BackupPort
from runtime.control.job.journal import JobState
from runtime.control.job.recorder import Recorder
from runtime.control.messages import Digest, Digests, Message
from runtime.control.training.course import Course
from runtime.control.training.digests import FinalDigests
from runtime.control.training.phases import DRAIN_S, Phase, StopRequest
from runtime.control.training.training import NEVER_S


class Ending:
    """The last phase of a course. Times are on the coordinator's clock, in seconds."""

    def __init__(
        self,
        course: Course,
        layers: int,
        backup: BackupPort,
        recorder: Recorder,
        keeper: CheckpointKeeper,
        send: Callable[[str, Message], None],
    ) -> None:
        self._course, self._backup, self._recorder = course, backup, recorder
        self._keeper, self._send = keeper, send
        self._digests = FinalDigests(layers)
        self._drained_by_s = NEVER_S
        self.stopped: StopRequest | None = None

    @property
    def digest(self) -> str | None:
        """The digest of the final weights; None if the job was cut off before."""
        return self._digests.weights() if self._digests.complete else None

    def stop(self, request: StopRequest) -> None:
        """End the job now."""
        self.stopped, self._course.phase = request, Phase.ENDED

    def look_at_budget(self, now_s: float, step_s: float) -> None:
        """Before the budget is overstepped the step in flight becomes the last, and its state is kept."""
        course = self._course
        drain_s = DRAIN_S + 2 * step_s if self._keeper.wanted else 0.0
        if self.stopped is not None and now_s > self._drained_by_s:
            course.phase = Phase.ENDED
        elif self.stopped is None and (why := self._recorder.budget_spent(drain_s)):
            self.stopped = StopRequest(JobState.FAILED, why)
            self._drained_by_s = now_s + drain_s
            if course.phase is Phase.RUNNING and drain_s:
                course.steps = course.step + 1
            else:
                course.phase = Phase.ENDED

    def begin(
        self, holds: Mapping[str, frozenset[int]], copies: Mapping[str, list[int]], deadline_s: float
    ) -> None:
        """Every step is committed, and these nodes hold the outcome."""
        self._course.phase, self._digests.holders = Phase.FINISHING, holds
        self._course.deadline_s = deadline_s
        if copies:
            self._backup.expect(self._course.step)
        for node in holds:
            self._send(node, Digest(copies.get(node, [])))

    def suffices(self, holds: Mapping[str, frozenset[int]]) -> bool:
        """Whether nothing is left to be trained, and these holders have what nobody has reported."""
        return self._course.step == self._course.steps and self._digests.whole(holds)

    def heard(self, message: Digests) -> None:
        """A holder says what its weights are."""
        course = self._course
        if course.phase is Phase.FINISHING and message.step == course.steps:
            self._digests.report(message.layers)
            course.phase = Phase.ENDED if self._digests.complete else course.phase

    def lose(self, node: str) -> None:
        """A holder is gone."""
        self._digests.lose(node)

    def is_out_of_reach(self) -> bool:
        """Whether what is still unknown died with its last holder, and the backup has not got it either."""
        if self._digests.take_from(self._backup, self._course.steps):
            self._course.phase = Phase.ENDED
            return False
        return self._digests.out_of_reach()

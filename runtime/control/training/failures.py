"""Workers that answer "I cannot go on": whom to give up, and when it is the job itself that cannot go on.

A failure is charged to nobody if somebody died meanwhile: whoever waited for the dead is who reports. Else
the first to report in an attempt is charged, since the others fail because it left them. A failed fetch is
reported by its receiver: once a second receiver fails at the same source, the source is charged instead.

A worker that fails before it is ready, so that it was in no attempt, is charged itself, until it is ready;
one that dies without a word, time and again, until it has taken part in a commit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from runtime.control.training.training import TrainingError

# So many failures of one node, and no committed step between, make it unusable.
MOST_FAILURES = 3


@dataclass(frozen=True)
class Failure:
    """What a worker reported, when `step` was to be committed next; `members` were at work.

    `source` is the node that it was fetching from, if that failed.
    """

    node: str
    error: str
    step: int
    members: frozenset[str]
    source: str | None = None


class Failures:
    """Failures by node since a step was last committed that had not been when they came.

    A step that is only done again (after a rollback) proves nothing about the step that failed.
    """

    def __init__(self, wanted: int = 1) -> None:
        """`wanted` is how many instances the job has when all is well."""
        self._most_unstarted = max(MOST_FAILURES, wanted)
        self._deaths: dict[str, int] = {}  # by node, since it last took part in a commit
        self._starts: dict[str, int] = {}  # failures by node, before it was ready
        self._unstarted = 0  # instances given up in a row, with no worker ready in between
        self._open: Failure | None = None  # of the attempt that is being left
        self._counts: dict[str, int] = {}
        self._receivers: dict[str, set[str]] = {}  # by the source that they could not fetch from
        self._unusable: list[str] = []  # given up since that commit
        self._step = -1  # the newest that failed

    def report(
        self, node: str, error: str, step: int, members: Iterable[str], source: str | None = None
    ) -> None:
        """The first failure of an attempt."""
        self._open = Failure(node, error, step, frozenset(members), source)

    def lose(self, node: str) -> None:
        """A worker died: it, and not the one that reported, is why the attempt failed."""
        if self._open is not None and self._open.node != node:
            self._open = None

    def end(self, nodes: Collection[str]) -> None:
        """An instance has ended; another machine may have its workers' names next."""
        for node in nodes:
            self.lose(node)
            self._counts.pop(node, None)
            self._starts.pop(node, None)
            self._deaths.pop(node, None)

    def ready(self, node: str) -> None:
        """A worker is ready for work: here it can be done."""
        self._starts.pop(node, None)
        self._unstarted = 0

    def fail_start(self, node: str) -> bool:
        """A worker failed before it was ready; whether that makes its node unusable."""
        self._starts[node] = self._starts.get(node, 0) + 1
        return self._starts[node] == MOST_FAILURES

    def die(self, node: str, why: str, step: int) -> bool:
        """A worker that was ready has died; whether its node is unusable.

        Raises:
            TrainingError: it is the second such node, and nothing was committed in between.
        """
        self._deaths[node] = self._deaths.get(node, 0) + 1
        if self._deaths[node] != MOST_FAILURES:
            return False
        self._step = max(self._step, step)
        if self._unusable:
            raise TrainingError(f"{node} dies at step {step}, {self._unusable[-1]} did so too: {why}")
        self._unusable.append(node)
        return True

    def broken(self, instance: str, error: str) -> None:
        """An instance could not be made ready, and is given up.

        Raises:
            TrainingError: so many in a row that the fault is the job's own.
        """
        self._unstarted += 1
        if self._unstarted >= self._most_unstarted:
            raise TrainingError(f"{self._unstarted} nodes in a row did not get ready: {instance}: {error}")

    def commit(self, step: int, members: Iterable[str]) -> None:
        """A step was committed: by these members, and the job can do it."""
        members = list(members)
        for node in members:
            self._deaths.pop(node, None)
        if step < self._step:
            return
        self._unusable, self._receivers = [], {}
        for node in members:
            self._counts.pop(node, None)

    def settle(self) -> Failure | None:
        """Charge the last failure, all deaths being known: it is returned if its node is unusable now.

        Raises:
            TrainingError: the fault is the job's own, since every member fails, or a second unusable node.
        """
        failure, self._open = self._open, None
        if failure is None:
            return None
        node, self._step = self._charged(failure), max(self._step, failure.step)
        self._counts[node] = self._counts.get(node, 0) + 1
        members = failure.members
        every = len(members) > 1 and members <= self._counts.keys()
        if every and sum(self._counts[member] for member in members) >= MOST_FAILURES:
            raise TrainingError(f"every worker fails at step {failure.step}: {failure.error}")
        if self._counts[node] < MOST_FAILURES:
            return None
        if self._unusable:
            raise TrainingError(
                f"{node} fails at step {failure.step} as {self._unusable[-1]} did: {failure.error}"
            )
        self._unusable.append(node)
        return replace(failure, node=node)

    def _charged(self, failure: Failure) -> str:
        source, node = failure.source, failure.node
        if source is None:
            return node
        receivers = self._receivers.setdefault(source, set())
        receivers.add(node)
        if len(receivers) == 1:
            return node
        self._unusable = [one for one in self._unusable if one not in receivers]  # they were blamed for it
        return source

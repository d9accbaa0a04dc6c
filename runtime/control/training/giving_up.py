"""Which workers and instances are of no use: they are ended, and others take their places."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cloud.types import Instance, InstanceState
from runtime.control.fleet.events import NodeBroken
from runtime.control.job.recorder import Recorder
from runtime.control.messages import Failed
from runtime.control.training.course import Course
from runtime.control.training.failures import MOST_FAILURES, Failures
from runtime.control.training.phases import FleetPort
from runtime.control.training.roster import Roster
from runtime.planning.placement import instance_of, worker_names


class GivingUp:
    """Charges failures and deaths, and ends an instance that had too many. `lose` is told of its workers."""

    def __init__(
        self,
        course: Course,
        roster: Roster,
        recorder: Recorder,
        fleet: FleetPort,
        lose: Callable[[str, str], None],
        wanted: int,
        gpus: int,
    ) -> None:
        """`wanted` is how many instances the job has when all is well."""
        self._course, self._roster, self._recorder = course, roster, recorder
        self._fleet, self._lose, self._gpus = fleet, lose, gpus
        self._failures = Failures(wanted)
        self._ending: set[str] = set()  # given up, and not ended yet

    def ready(self, node: str) -> None:
        """A worker is ready for work."""
        self._failures.ready(node)

    def fail_start(self, node: str, why: str) -> None:
        """A worker failed before it was ready: it is started again, but not for ever."""
        self._recorder.event("trouble", f"{node} has not started", why)
        self._roster.lose(node)
        name = instance_of(node, self._gpus)
        if name in self._ending:
            return
        if self._failures.fail_start(node):
            self._end(name, f"{node} has failed {MOST_FAILURES} times before it was ready: {why}")
            self._failures.broken(name, why)
        else:
            self._fleet.kill_worker(node)  # where it has ended already, its agent starts another by itself

    def broken(self, event: NodeBroken) -> None:
        """A node could not be set up, and its instance is being ended."""
        self._failures.broken(event.node, event.why)

    def report(self, node: str, failed: Failed) -> None:
        """A worker cannot go on, in the generation that is at work."""
        workers, running = self._roster.workers, self._course.running
        addresses = {(w.hello.host, w.hello.transfer_port): name for name, w in workers.items()}
        source = addresses.get(tuple(failed.source)) if failed.source else None
        members = () if running is None else running.assignment
        self._failures.report(node, failed.error, self._course.step, members, source)

    def lose(self, node: str) -> None:
        """A worker that was ready is gone, for whatever reason."""
        self._failures.lose(node)

    def died(self, node: str, why: str) -> None:
        """A worker that was ready is gone, and not because its machine is."""
        if self._failures.die(node, why, self._course.step):
            name = instance_of(node, self._gpus)
            self._end(name, f"{node} has died {MOST_FAILURES} times in a row: {why}")

    def committed(self, step: int, members: Iterable[str]) -> None:
        """A step was committed by these."""
        self._failures.commit(step, members)

    def changed(self, instance: Instance) -> None:
        """An instance is in another state."""
        if instance.state is InstanceState.TERMINATED:
            self._ending.discard(instance.name)
            self._failures.end(worker_names(instance.name, self._gpus))

    def settle(self) -> None:
        """Every death of the attempt that was left is known: charge its failure.

        Raises:
            TrainingError: it is the job itself that cannot go on.
        """
        if (failure := self._failures.settle()) is not None:
            name = instance_of(failure.node, self._gpus)
            self._end(name, f"it has failed {MOST_FAILURES} times in a row: {failure.error}")

    def look(self, now_s: float, lame_s: float, unready_s: float) -> None:
        """End instances that have lacked a worker for `lame_s`, or of which some never got ready in
        `unready_s`. `now_s` is on the coordinator's clock.

        Raises:
            TrainingError: so many in a row did not get ready that it is the job itself.
        """
        for name in self._roster.lame(now_s, lame_s, unready_s):
            if self._roster.once_whole(name):
                self._end(name, f"one of its workers has been missing for {lame_s:g} s")
            else:
                why = f"a worker has been there for {unready_s:g} s without getting ready"
                self._end(name, why)
                self._failures.broken(name, why)

    def _end(self, instance: str, why: str) -> None:
        if instance in self._ending:
            return
        self._ending.add(instance)
        self._recorder.event("trouble", f"{instance} is of no use: ending the instance", why)
        workers = worker_names(instance, self._gpus)
        self._fleet.end(workers[0], why)
        for worker in workers:
            if worker in self._roster:
                self._lose(worker, why)

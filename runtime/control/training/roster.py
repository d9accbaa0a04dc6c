"""Who is here: the workers that have joined, the nodes that are still booting, and the cloud's notices."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cloud.types import Instance, InstanceState
from runtime.control.messages import Hello
from runtime.planning.placement import instance_of, instances_of, worker_names


@dataclass
class Worker:
    """A connected worker; `ready` once it has the model and the text."""

    hello: Hello
    ready: bool = False


class Roster:
    """The nodes of a job, as the coordinator knows them. Deadlines are on its clock, in seconds.

    Where instances have several `gpus`, a node is a worker of one.
    """

    def __init__(self, gpus: int = 1) -> None:
        self._gpus = gpus
        self.workers: dict[str, Worker] = {}
        self.notices: dict[str, float] = {}
        self._booting: set[str] = set()
        self._seen: set[str] = set()
        self._acted_on: set[str] = set()  # noticed nodes that planning knows of
        self._restarting: set[str] = set()  # ended on purpose, and not back yet
        self._awaited: set[str] = set()  # who is started again, and of use
        self._restarted = False
        self._instances: set[str] = set()  # that have not ended
        self._once_whole: set[str] = set()  # of these, those whose workers were all ready at some time
        self._lame: dict[str, float] = {}  # that lack a ready worker while others can be heard, since when
        self._useless: set[str] = set()  # that `lame` has named
        self._lost: list[str] = []
        self._joined: list[str] = []

    def __contains__(self, node: str) -> bool:
        return node in self.workers

    @property
    def ready(self) -> set[str]:
        """The nodes that can be given a position."""
        return {node for node, worker in self.workers.items() if worker.ready}

    @property
    def booting(self) -> bool:
        """Whether an instance has been rented whose worker is not ready yet."""
        return bool(self._booting)

    @property
    def awaited(self) -> bool:
        """Whether a layout is better held back: at first for whoever boots, later for who is restarted."""
        return bool(self._awaited - self.notices.keys()) if self._restarted else self.booting

    def restart(self, nodes: Iterable[str]) -> None:
        """These workers are about to be ended and started again, which is neither a loss nor a join.

        Whoever has just died alone, its instance being there, is started again as well.
        """
        self._restarted = True
        self._restarting.update(nodes)
        alone = [node for node in self._lost if instance_of(node, self._gpus) in self._instances]
        self._awaited.update(nodes, (node for node in alone if node not in self.workers))

    def restarting(self, node: str) -> bool:
        """Whether the worker was ended on purpose and is not back yet."""
        return node in self._restarting

    def instance(self, instance: Instance) -> None:
        """An instance changed its state."""
        if instance.state is InstanceState.TERMINATED:
            self._instances.discard(instance.name)
            self._once_whole.discard(instance.name)
            self._useless.discard(instance.name)
            self._lame.pop(instance.name, None)
            self._booting.discard(instance.name)
            workers = worker_names(instance.name, self._gpus)
            self._awaited.difference_update(workers)
            gone = self._restarting.intersection(workers)
            self._restarting -= gone
            self._lost += sorted(gone)
            for worker in workers:
                self.notices.pop(worker, None)  # the next instance of that name has not been noticed
            return
        self._instances.add(instance.name)
        if not self.workers.keys() >= set(worker_names(instance.name, self._gpus)):
            self._booting.add(instance.name)

    def notice(self, instance: str, deadline_s: float) -> None:
        """The cloud will take an instance, with all its workers."""
        self.notices.update(dict.fromkeys(worker_names(instance, self._gpus), deadline_s))

    def whole(self, node: str) -> bool:
        """Whether every worker of the node's instance is ready."""
        return all(map(self.is_ready, worker_names(instance_of(node, self._gpus), self._gpus)))

    def join(self, node: str, hello: Hello) -> bool:
        """A worker connected; whether it is the node's first."""
        self.workers[node] = Worker(hello)
        self._acted_on.discard(node)
        first = node not in self._seen
        self._seen.add(node)
        return first

    def make_ready(self, node: str) -> None:
        """A worker has loaded the model and the text."""
        self.workers[node].ready = True
        if self.whole(node):
            instance = instance_of(node, self._gpus)
            self._booting.discard(instance)
            self._once_whole.add(instance)
            self._lame.pop(instance, None)
        self._awaited.discard(node)
        if node in self._restarting:
            self._restarting.discard(node)
        else:
            self._joined.append(node)

    def lose(self, node: str) -> bool:
        """A worker is gone; whether it was ready."""
        worker = self.workers.pop(node, None)
        if worker is None or not worker.ready:
            return False
        if node not in self._restarting:
            self._lost.append(node)
        return True

    def lame(self, now_s: float, limit_s: float, unready_s: float) -> list[str]:
        """Instances that have lacked a ready worker for `limit_s`, each named once; for `unready_s` where all
        were never ready together.

        One of whose workers none can be heard may be out of reach: that is for its link to judge. Call this
        often: the time runs from when it was first seen to be so.
        """
        heard = {instance_of(node, self._gpus) for node in self.workers} - self._useless
        self._lame = {
            name: self._lame.get(name, now_s)
            for name in heard
            if not all(map(self.is_ready, worker_names(name, self._gpus)))
        }
        over = [
            name
            for name, since_s in self._lame.items()
            if now_s - since_s >= (limit_s if name in self._once_whole else unready_s)
        ]
        self._useless.update(over)
        return sorted(over)

    def once_whole(self, instance: str) -> bool:
        """Whether all of an instance's workers were ready at some time."""
        return instance in self._once_whole

    def postpone(self, gap_s: float) -> None:
        """For so long nobody could have been heard."""
        for instance in self._lame:
            self._lame[instance] += gap_s

    def due(self, now_s: float, lead_s: float) -> list[str]:
        """The noticed nodes that have to be acted on now, each named once: `lead_s` before their deadline.

        Until then they train on.
        """
        due = [
            node
            for node, deadline_s in self.notices.items()
            if node not in self._acted_on and self.is_ready(node) and now_s >= deadline_s - lead_s
        ]
        self._acted_on.update(due)
        return due

    def next_due_s(self, lead_s: float) -> float:
        """When `due` will name the next node."""
        waiting = (at_s for node, at_s in self.notices.items() if node not in self._acted_on and node in self)
        return min(waiting, default=math.inf) - lead_s

    def is_ready(self, node: str) -> bool:
        """Whether the node can be given a position."""
        return node in self.workers and self.workers[node].ready

    def spared(self, late_s: float) -> list[str]:
        """Forget notices whose deadline lies before `late_s`, and name those nodes that are still here."""
        over = [node for node, deadline_s in self.notices.items() if deadline_s < late_s]
        for node in over:
            del self.notices[node]
        spared = [node for node in over if self.is_ready(node) and node in self._acted_on]
        self._acted_on.difference_update(over)
        return spared

    def changes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The instances lost and joined since this was last asked."""
        lost, joined = self._lost, self._joined
        self._lost, self._joined = [], []
        if self._gpus == 1:
            return tuple(lost), tuple(joined)
        return instances_of(lost, self._gpus), instances_of(joined, self._gpus)

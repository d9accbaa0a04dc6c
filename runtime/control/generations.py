"""From a plan to what each worker is told, and what the workers of a plan hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.control.messages import Prepare, Switch
from runtime.control.roster import Worker
from runtime.planning.types import MigrationPlan

# A generation whose groups do not stand by then is given up.
PREPARE_TIMEOUT_S = 10.0


@dataclass
class Pending:
    """A generation that is being built while another one trains."""

    plan: MigrationPlan
    since_s: float
    prepared: set[str] = field(default_factory=set)

    @property
    def ready(self) -> bool:
        """Whether every member's groups stand."""
        return self.prepared >= set(self.plan.assignment)

    def possible(self, alive: Collection[str]) -> bool:
        """Whether everybody whom the plan needs, as a member or as a source, is still here."""
        sources = {fetch.source for fetch in self.plan.fetches if fetch.source is not None}
        return set(self.plan.assignment) | sources <= set(alive)

    def late(self, now_s: float) -> bool:
        """Whether it should have been ready long ago."""
        return not self.ready and now_s > self.since_s + PREPARE_TIMEOUT_S


class Recovery:
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

    def holds(self, alive: Collection[str]) -> dict[str, frozenset[int]]:
        """What the survivors hold, of those that are still alive."""
        return {node: layers for node, layers in self._holds.items() if node in alive}


def prepare_messages(plan: MigrationPlan, workers: Mapping[str, Worker]) -> dict[str, Prepare]:
    """What each member is told to build; the rendezvous is the store of the first position's worker."""
    first = min(plan.assignment, key=lambda node: plan.assignment[node])
    hello = workers[first].hello
    return {
        node: Prepare(
            plan.generation,
            plan.layout.pipelines,
            [position.pipeline, position.stage],
            [list(stage) for stage in plan.cuts],
            [hello.host, hello.store_port],
        )
        for node, position in plan.assignment.items()
    }


def switch_messages(plan: MigrationPlan, step: int, workers: Mapping[str, Worker]) -> dict[str, Switch]:
    """What each member fetches, from whom, before it begins `step`."""

    def source(node: str | None) -> str | list[Any]:
        if node is None:
            return "backup" if step else "seed"
        hello = workers[node].hello
        return [hello.host, hello.transfer_port]

    fetches: dict[str, list[list[Any]]] = {node: [] for node in plan.assignment}
    for fetch in plan.fetches:
        fetches[fetch.node].append([fetch.layer, source(fetch.source)])
    return {node: Switch(plan.generation, step, wanted) for node, wanted in fetches.items()}


def members_hold(plan: MigrationPlan) -> dict[str, frozenset[int]]:
    """The layers of every member, once the generation is live."""
    return {node: frozenset(plan.cuts[at.stage]) for node, at in plan.assignment.items()}
